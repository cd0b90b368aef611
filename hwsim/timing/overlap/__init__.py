"""Overlap modes: what may happen at the same time in a decode. There is one file for each mode.

| | `none` | `group` | `pipeline` | `prefetch` |
|---|---|---|---|---|
| Flash reads misses of a group while DRAM reads its hits | no | yes | yes | yes |
| arithmetic on hits while misses arrive | no | no | yes | yes |
| a layer's pinned weights, streamed weights and arithmetic outside its groups at once | no | no | yes | yes |
| what the next layer surely needs is read in idle time | no | no | yes | yes |
| what the next layer is guessed to need is read in idle time | no | no | no | yes |
| a prompt's arithmetic while its weights are read | no | no | yes | yes |

What the next layer surely needs are its pinned and streamed weights and its KV entries. In every mode, units that go
from Flash through DRAM (fills) are written to DRAM while Flash reads, and read from DRAM afterwards.

To add a mode, add a file to this folder with one subclass of `Overlap`. Its name, help and abilities are attributes of
the class; the choices of the command line, the checks of settings and the help texts are derived from them. This
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
"""Time of a group's reads in the closed form: the sum of Flash and DRAM, or the larger of the two."""


class Overlap(ABC):
    """Base of all modes. One object serves one decode and may keep state of it.

    Args:
        decoder: gives access to the devices, the work of each step, and the accounts.

    Attributes:
        name: name of the mode for users.
        help: one clause for the help of ``--overlap``; a clause that begins with "also" adds to the mode before.
        place: position of the mode in lists; modes that allow less come first.
        closed_form: how the closed form combines Flash and DRAM; None if it does not support the mode.
        in_order: True if no two services are ever at the same time, so that `hwsim.timing.in_order` gives the same
            result in less time. Fills are an exception in every mode: they are written while Flash reads.
        prefill_beside: True if a prompt's arithmetic is done while its weights are read.
        guesses: True if the mode reads ahead the predictions of a prefetch rule, so that it needs such a rule.
        guessed: float64 ``[tokens, layers, groups]``: share of each prediction that was read in time; None without.
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
        """Run the work of a layer outside its groups, as a part of the decoder process.

        The default has no overlap. The LM head is a last layer without KV entries and groups.
        """
        decoder, spent = self.decoder, self.decoder.spent
        yield from decoder.serve(spent.resident, decoder.dram, at, work.resident + work.kv_cache)
        spent.resident.seconds -= work.kv_cache  # one request for both, but separate accounts
        spent.kv_cache.seconds += work.kv_cache
        yield from decoder.serve(spent.streamed, decoder.flash, at, work.streamed)
        yield from decoder.serve(spent.compute, decoder.compute, at, work.arithmetic)

    @abstractmethod
    def read_group(self, at: At, work: GroupWork) -> Steps:
        """Run the work of a group whose mask is chosen, as a part of the decoder process: read and compute."""


def modes() -> dict[str, type[Overlap]]:
    """All modes of this package by name, modes that allow less first."""
    classes = [
        mode
        for file in pkgutil.iter_modules(__path__)
        if not file.name.startswith("_")
        for mode in vars(importlib.import_module(f"{__name__}.{file.name}")).values()
        if isinstance(mode, type) and issubclass(mode, Overlap) and mode.__module__ == f"{__name__}.{file.name}"
    ]
    return {mode.name: mode for mode in sorted(classes, key=lambda mode: (mode.place, mode.name))}


def names() -> list[str]:
    """Names of all modes, modes that allow less first."""
    return list(modes())


def find(name: str) -> type[Overlap]:
    """Return the mode with a name.

    Raises:
        SettingError: there is no such mode.
    """
    known = modes()
    if name not in known:
        raise SettingError(f"no overlap mode {name!r}{did_you_mean(name, known)}")
    return known[name]


def option_help() -> str:
    """The help text of ``--overlap``, with a clause for each mode."""
    return f"What may happen at once. {'; '.join(f'{name}: {mode.help}' for name, mode in modes().items())}."
