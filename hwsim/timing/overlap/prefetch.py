"""All overlap of `pipeline`, and prefetch of the units that a rule predicts for the next layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwsim.timing.overlap.pipeline import PipelineOverlap

if TYPE_CHECKING:
    from hwsim.timing.events import Decoder
    from hwsim.timing.server import Steps
    from hwsim.timing.steps import At, GroupWork, LayerWork


class PrefetchOverlap(PipelineOverlap):
    """Flash also reads predicted units in idle time that no sure work needs."""

    name = "prefetch"
    help = "also what --prefetch guesses"
    place = 3
    guesses = True

    def __init__(self, decoder: Decoder) -> None:
        super().__init__(decoder)
        import numpy as np  # noqa: PLC0415  # the class is also imported only for its name

        self._ahead, self._left = decoder.load.ahead, decoder.load.left
        self.guessed = None if self._ahead is None else np.zeros(self._ahead.shape)

    def read_layer(self, at: At, work: LayerWork) -> Steps:
        """As `pipeline`; then reads of the units that are predicted for the next layer may begin."""
        yield from super().read_layer(at, work)
        after = self.decoder.after(at)
        if self._ahead is None or after is None or after.layer == self.decoder.load.layers:
            return
        for group, seconds in enumerate(self._ahead[after.token, after.layer].tolist()):
            self.decoder.flash.ahead.post(after._replace(group=group), seconds)

    def read_group(self, at: At, work: GroupWork) -> Steps:
        """As `pipeline`, but without the misses that were predicted and read in time."""
        if self.guessed is not None and self._left is not None:
            share = self.decoder.claim(self.decoder.flash, at, "guess")
            self.guessed[at] = share
            work = work._replace(flash=work.flash + share * (self._left.item(*at) - work.flash))
        yield from super().read_group(at, work)
