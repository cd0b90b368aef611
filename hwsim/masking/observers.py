"""What sees a run as it goes: masks, caches, progress. Results do not depend on the observers of a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

import numpy as np

from hwsim.memory.groups import Place

if TYPE_CHECKING:
    from hwsim.masking.counts import Served


class Observer:
    """Base of all observers: each method is called as the run goes, and does nothing unless it is overridden.

    Attributes:
        sees_cache: `masks` needs `Served.before`, what was cached before each token.
        any_order: threads may call `masks` for several layers at once; the tokens of one place always come in order.
    """

    sees_cache: ClassVar[bool] = False
    any_order: ClassVar[bool] = False

    def masks(self, place: Place, token: int, served: Served) -> None:
        """The masks of decoded tokens in a row, from `token` on, went through the cache of a place."""

    def cached(self, place: Place, cached: np.ndarray) -> None:
        """What the cache of a place holds at the end of the run: bool ``[units]``, read-only."""

    def progress(self, phase: str, done: int, total: int) -> None:
        """A phase of the run has come so far."""


def listens(observer: Observer) -> bool:
    """Whether an observer looks at masks at all."""
    return type(observer).masks is not Observer.masks


def tell_progress(observers: tuple[Observer, ...], phase: str, done: int, total: int) -> None:
    """Tell all observers how far a phase has come."""
    for observer in observers:
        observer.progress(phase, done, total)
