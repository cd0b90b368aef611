"""Steps of the decoder and their work, which the decoder passes to an overlap mode."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from hwsim.timing.times import Account


class At(NamedTuple):
    """A step of the decoder: a group of a layer of a token; group -1: what no mask cuts."""

    token: int
    layer: int
    group: int = -1


class LayerWork(NamedTuple):
    """Work of a layer outside its groups, in seconds.

    Attributes:
        resident: time of DRAM for pinned weights.
        kv_cache: time of DRAM for entries of the KV cache.
        streamed: time of Flash for weights that do not fit into DRAM.
        arithmetic: time of compute outside the groups.
    """

    resident: float
    kv_cache: float
    streamed: float
    arithmetic: float


class GroupWork(NamedTuple):
    """Work of a group, in seconds.

    Attributes:
        account: account for the time of its reads.
        selection: time of compute for choosing the mask; spent before `Overlap.read_group` is called.
        dram: time of DRAM for hits.
        flash: time of Flash for misses.
        fills: time of DRAM for writing what comes from Flash; reading it takes the same time again.
        on_hits: time of compute for arithmetic that needs only hits.
        on_misses: time of compute for the rest of the arithmetic.
    """

    account: Account
    selection: float
    dram: float
    flash: float
    fills: float
    on_hits: float
    on_misses: float
