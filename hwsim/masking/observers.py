"""Observers, which receive masks, caches and progress during a run. Results do not depend on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hwsim.memory.groups import Place

if TYPE_CHECKING:
    from hwsim.masking.counts import Served


class Observer:
    """Base of all observers: the methods are called during the run and do nothing unless overridden.

    Attributes:
        sees_cache: whether `masks` needs `Served.before`, the cached units before each token.
        any_order: whether threads may call `masks` for several layers at once; the tokens of one place are always in
            order.
    """

    sees_cache: ClassVar[bool] = False
    any_order: ClassVar[bool] = False

    def masks(self, place: Place, token: int, served: Served) -> None:
        """Called when the cache of a place has served the masks of consecutive decoded tokens from `token` on."""

    def cached(self, place: Place, cached: np.ndarray) -> None:
        """Called at the end of the run with the content of a cache: bool ``[units]``, read-only."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """Called when a phase of the run has done `done` of `total`."""


def listens(observer: Observer) -> bool:
    """Whether an observer overrides `masks`."""
    return type(observer).masks is not Observer.masks


def tell_progress(observers: tuple[Observer, ...], phase: str, done: int, total: int) -> None:
    """Inform all observers of the progress of a phase."""
    for observer in observers:
        observer.progress(phase, done, total)
