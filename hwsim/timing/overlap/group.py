"""Overlap of Flash and DRAM within a group, as in the paper's closed form."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwsim.timing.overlap import Overlap

if TYPE_CHECKING:
    from hwsim.timing.server import Steps
    from hwsim.timing.steps import At, GroupWork


class GroupOverlap(Overlap):
    """Flash reads the misses of a group while DRAM reads its hits."""

    name = "group"
    help = "Flash and DRAM within a group"
    place = 1
    closed_form = "larger"

    def read_group(self, at: At, work: GroupWork) -> Steps:
        """Read hits and misses at the same time, then read the fills from DRAM, then compute."""
        decoder, account = self.decoder, work.account
        durations = yield from decoder.together(
            at, (account, decoder.flash, work.flash), (account, decoder.dram, work.dram + work.fills)
        )
        account.seconds += max(durations)
        yield from decoder.serve(account, decoder.dram, at, work.fills)
        yield from decoder.serve(decoder.spent.compute, decoder.compute, at, work.on_hits + work.on_misses)
