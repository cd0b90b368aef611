"""No overlap: one service after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwsim.timing.overlap import Overlap

if TYPE_CHECKING:
    from hwsim.timing.server import Steps
    from hwsim.timing.steps import At, GroupWork


class NoOverlap(Overlap):
    """Nothing happens at the same time, except fills."""

    name = "none"
    help = "nothing"
    place = 0
    closed_form = "sum"
    in_order = True

    def read_group(self, at: At, work: GroupWork) -> Steps:
        """Read hits, read misses, compute."""
        decoder, account = self.decoder, work.account
        yield from decoder.serve(account, decoder.dram, at, work.dram)
        if not work.fills:
            yield from decoder.serve(account, decoder.flash, at, work.flash)
        else:
            durations = yield from decoder.together(
                at, (account, decoder.flash, work.flash), (account, decoder.dram, work.fills)
            )
            account.seconds += max(durations)
            yield from decoder.serve(account, decoder.dram, at, work.fills)
        yield from decoder.serve(decoder.spent.compute, decoder.compute, at, work.on_hits + work.on_misses)
