"""Overlap of all devices within a layer, and prefetch of what the next layer surely needs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hwsim.timing.overlap import Overlap

if TYPE_CHECKING:
    from hwsim.timing.server import Steps
    from hwsim.timing.steps import At, GroupWork, LayerWork


class PipelineOverlap(Overlap):
    """Compute works on hits while misses arrive; the next layer's weights and KV entries are read in idle time."""

    name = "pipeline"
    help = "also arithmetic, and what the next layer surely needs"
    place = 2
    prefill_beside = True

    def read_layer(self, at: At, work: LayerWork) -> Steps:
        """Read what was not read ahead and compute at the same time; then reads for the next layer may begin."""
        decoder, spent = self.decoder, self.decoder.spent
        from_dram = 1.0 - decoder.claim(decoder.dram, at, "weights")
        from_flash = 1.0 - decoder.claim(decoder.flash, at, "streamed weights")
        resident, kv, streamed = work.resident * from_dram, work.kv_cache * from_dram, work.streamed * from_flash
        if after := decoder.after(at):
            self._read_ahead(after)
        durations = yield from decoder.together(
            at,
            (spent.resident, decoder.dram, resident + kv),
            (spent.streamed, decoder.flash, streamed),
            (spent.compute, decoder.compute, work.arithmetic),
        )
        dram, flash, _ = durations
        spent.resident.seconds += dram * resident / (resident + kv) if dram else 0.0
        spent.kv_cache.seconds += dram * kv / (resident + kv) if dram else 0.0
        spent.streamed.seconds += max(flash - dram, 0.0)
        spent.compute.seconds += max(durations) - max(flash, dram)

    def read_group(self, at: At, work: GroupWork) -> Steps:
        """Read hits and misses and compute on hits at the same time, then compute on misses."""
        decoder, account, compute = self.decoder, work.account, self.decoder.spent.compute
        flash, dram, arithmetic = yield from decoder.together(
            at,
            (account, decoder.flash, work.flash),
            (account, decoder.dram, work.dram + work.fills),
            (compute, decoder.compute, work.on_hits),
        )
        read = max(flash, dram)
        account.seconds += read
        compute.seconds += max(arithmetic - read, 0.0)
        filled, arithmetic = yield from decoder.together(
            at, (account, decoder.dram, work.fills), (compute, decoder.compute, work.on_misses)
        )
        account.seconds += filled
        compute.seconds += max(arithmetic - filled, 0.0)

    def _read_ahead(self, at: At) -> None:
        """Post reads of what a layer surely needs, to be done in idle time."""
        decoder, work = self.decoder, self.decoder.layer_work(at)
        decoder.dram.ahead.post(at, work.resident + work.kv_cache)
        decoder.flash.ahead.post(at, work.streamed)
