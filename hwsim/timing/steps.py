"""What the decoder hands to an overlap mode at each step: which step it is, and what it asks of the devices."""

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
    """What a layer asks for beside its groups, s.

    Attributes:
        resident: of DRAM, for pinned weights.
        kv_cache: of DRAM, for entries of the KV cache.
        streamed: of Flash, for weights that do not fit.
        arithmetic: of compute, outside the groups.
    """

    resident: float
    kv_cache: float
    streamed: float
    arithmetic: float


class GroupWork(NamedTuple):
    """What a group asks for, s.

    Attributes:
        account: for the time of its reads.
        selection: of compute, for choosing its mask; done before a mode is asked.
        dram: of DRAM, for hits.
        flash: of Flash, for misses.
        fills: of DRAM, for writing what comes from Flash; reading it takes as long again.
        on_hits: of compute, for arithmetic that needs only hits.
        on_misses: of compute, for the rest of the arithmetic.
    """

    account: Account
    selection: float
    dram: float
    flash: float
    fills: float
    on_hits: float
    on_misses: float
