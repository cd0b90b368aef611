"""Overlap modes: what may happen at the same time in a decode. One file a mode; this page is their whole contract.

| | `none` | `group` | `pipeline` | `prefetch` |
|---|---|---|---|---|
| Flash reads misses of a group while DRAM reads its hits | no | yes | yes | yes |
| arithmetic on hits while misses arrive | no | no | yes | yes |
| a layer's pinned weights, streamed weights and arithmetic outside its groups at once | no | no | yes | yes |
| what the next layer surely needs is read in idle time | no | no | yes | yes |
| what the next layer is guessed to need is read in idle time | no | no | no | yes |
| a prompt's arithmetic while its weights are read | no | no | yes | yes |

What the next layer surely needs are its pinned and streamed weights and its KV entries. In every mode, what comes from
Flash and is written to DRAM (fills) is written while Flash reads, and read from DRAM after it.

To add a mode, add a file to this folder with one subclass of `Overlap`. Its name, its help and what it can do are
attributes of the class; choices of the command line, checks of settings and the help are derived from them. This
package is imported to print help, so a file of a mode must not import SimPy or numpy before a decode begins.
"""

from __future__ import annotations

import importlib
import pkgutil
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, ClassVar, Literal

from hwsim.errors import SettingError, did_you_mean

if TYPE_CHECKING:
    import numpy as np

    from hwsim.timing.events import Decoder
    from hwsim.timing.server import Steps
    from hwsim.timing.steps import At, GroupWork, LayerWork

ClosedForm = Literal["sum", "larger"]
"""How the closed form counts reads of Flash and DRAM within a group: their sum, or the larger of the two."""


class Overlap(ABC):
    """Base of all modes. One object serves one decode; it may keep what it needs to know of it.

    Args:
        decoder: has the devices, what each step asks for, and the accounts.

    Attributes:
        name: what users call it.
        help: one clause for the help of ``--overlap``; a clause that begins with "also" adds to the mode before.
        place: of the mode in lists; modes that allow less come first.
        closed_form: how the closed form counts; None if the closed form does not know the mode.
        in_order: True if no two services are ever at the same time, so that `hwsim.timing.in_order` gives the same
            result in less time. Fills are an exception in every mode: they are written while Flash reads.
        prefill_beside: True if a prompt's arithmetic is done while its weights are read.
        guesses: True if it reads ahead what a prefetch rule guesses, so that it needs such a rule.
        guessed: float64 ``[tokens, layers, groups]``: share of each guess that was read in time; None without guesses.
    """

    name: ClassVar[str]
    help: ClassVar[str]
    place: ClassVar[int]
    closed_form: ClassVar[ClosedForm | None] = None
    in_order: ClassVar[bool] = False
    prefill_beside: ClassVar[bool] = False
    guesses: ClassVar[bool] = False

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder
        self.guessed: np.ndarray | None = None

    def read_layer(self, at: At, work: LayerWork) -> Steps:
        """Do what a layer asks for beside its groups, for the decoder process: without overlap unless overridden.

        The LM head is a last layer without KV entries and groups.
        """
        decoder, spent = self.decoder, self.decoder.spent
        yield from decoder.serve(spent.resident, decoder.dram, at, work.resident + work.kv_cache)
        spent.resident.seconds -= work.kv_cache  # one request for both, and an account for each
        spent.kv_cache.seconds += work.kv_cache
        yield from decoder.serve(spent.streamed, decoder.flash, at, work.streamed)
        yield from decoder.serve(spent.compute, decoder.compute, at, work.arithmetic)

    @abstractmethod
    def read_group(self, at: At, work: GroupWork) -> Steps:
        """Do what a group asks for, its mask being chosen: read hits and misses, compute; for the decoder process."""


def modes() -> dict[str, type[Overlap]]:
    """All modes by name, those that allow less first: one of each file of this package."""
    classes = [
        mode
        for file in pkgutil.iter_modules(__path__)
        if not file.name.startswith("_")
        for mode in vars(importlib.import_module(f"{__name__}.{file.name}")).values()
        if isinstance(mode, type) and issubclass(mode, Overlap) and mode.__module__ == f"{__name__}.{file.name}"
    ]
    return {mode.name: mode for mode in sorted(classes, key=lambda mode: (mode.place, mode.name))}


def names() -> list[str]:
    """Names of all modes, those that allow less first."""
    return list(modes())


def find(name: str) -> type[Overlap]:
    """The mode of a name.

    Raises:
        SettingError: there is none.
    """
    known = modes()
    if name not in known:
        raise SettingError(f"no overlap mode {name!r}{did_you_mean(name, known)}")
    return known[name]


def option_help() -> str:
    """Help of ``--overlap``: a clause for each mode."""
    return f"What may happen at once. {'; '.join(f'{name}: {mode.help}' for name, mode in modes().items())}."
