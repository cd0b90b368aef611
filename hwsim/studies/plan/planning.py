"""Replays of a trace at several amounts of DRAM, and the rule that recommends one setup for each.

Every number is that of a replay. The rules that recommend:

* The model's own number of experts is kept, because a trace does not say what fewer of them cost in accuracy.
* A cache for all layers that is smaller than what one token needs finds nothing under LRU. Then caches by layer are
  better, or as few experts as fit.
* Among the caches the fastest is taken, and the smallest number of reads at once that is as fast as any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from hwsim.device.profile import Profile
from hwsim.errors import SettingError
from hwsim.policy import Policy
from hwsim.simulation import replay
from hwsim.simulation.metrics import Result
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.result import measure
from hwsim.simulation.run import Conditions, Run, Source
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from hwsim.trace.sequences import Sequences
from hwsim.util.units import show_size

CACHES = (("global", "lru"), ("global", "lfu"), ("layer", "lru"), ("layer", "lfu"))
"""The caches that are compared: which layers share one, and the rule of eviction."""

BOUND = ("global", "belady")
"""What a rule with foresight finds."""

Tell = Callable[[int, int], None]
"""Callback: receives the replays done and their total."""


@dataclass(frozen=True)
class Row:
    """One setup at one amount of DRAM.

    Attributes:
        dram: bytes for the model.
        pinned: bytes of it for the KV cache and what every token reads.
        cache: bytes of it for experts.
        experts: experts of a token in each layer.
        weight_lost: share of the router's weight that fewer experts give up; None if the trace does not tell weights.
        demand: bytes of experts that a mean token needs.
        scope: which layers share a cache.
        eviction: name of the rule.
        lanes: reads outstanding at once; None if the profile has no model of that.
        hit_rate: share of the experts that the cache holds.
        flash_bytes: bytes that a mean token reads from Flash.
        tokens_per_second: speed of the decode.
        bound: whether the setup needs foresight, and is there to compare with.
        recommended: whether the rules recommend it.
    """

    dram: int
    pinned: int
    cache: int
    experts: int
    weight_lost: float | None
    demand: int
    scope: str
    eviction: str
    lanes: int | None
    hit_rate: float
    flash_bytes: float
    tokens_per_second: float
    bound: bool = False
    recommended: bool = False


@dataclass(frozen=True)
class Plan:
    """All setups, amount by amount of DRAM.

    Attributes:
        rows: the setups.
        reasons: for each amount of DRAM, in order, why one is recommended.
    """

    rows: list[Row]
    reasons: list[str]

    def plain(self) -> dict[str, Any]:
        """The plan as values for JSON."""
        return {"rows": [asdict(row) for row in self.rows], "reasons": self.reasons}


def plan(
    trace: Trace,
    device: Profile,
    drams: Sequence[str | int],
    settings: Settings | None = None,
    experts: Sequence[int] = (),
    tell: Tell | None = None,
) -> Plan:
    """Replay a trace of a mixture of experts under several setups, and recommend one for each amount of DRAM.

    Args:
        trace: an open trace with the choices of a router.
        device: profile of the device.
        drams: amounts of DRAM, bytes or text as of ``--dram``.
        settings: other options of the replays; the scope of the caches and DRAM are set here.
        experts: numbers of experts to try besides the model's own; at most that. Empty: half of them.
        tell: callback for the progress.

    Raises:
        SettingError: the model has no experts, there is no amount of DRAM, or a number of experts is impossible.
        HwsimError: as `hwsim.simulation.replay.replay`.
    """
    used = _used(trace)
    if not drams:
        raise SettingError("--dram: names no amount of DRAM; give one or several, such as 3GB,4GB")
    if wrong := [count for count in experts if not 1 <= count <= used]:
        raise SettingError(
            f"--experts {wrong[0]}: must be from 1 to {used}, what the router of {trace.model.name} uses"
        )
    counts = sorted({used, *(experts or (max(1, used // 2),))}, reverse=True)
    study = _Study(trace, device, settings or Settings(), used, counts, tell or (lambda done, total: None))
    total = len(drams) * (len(CACHES) * len(counts) + 1 + len(study.lanes))
    rows: list[Row] = []
    reasons = []
    for dram in drams:
        found = study.rows(dram, total)
        reasons.append(_recommend(found, used))
        rows += found
    return Plan(rows, reasons)


def _used(trace: Trace) -> int:
    experts = trace.model.experts
    if experts is None or not trace.has("experts"):
        raise SettingError(
            f"{trace.path}: has no choices of a router; hwsim plan is for mixtures of experts. For other models hwsim "
            "trace curve shows the hit rate by cache size, and hwsim tune finds settings"
        )
    return max(layer.experts.used for layer in trace.model.layers if layer.experts)


class _Study:
    """The replays of one trace on one device."""

    def __init__(
        self, trace: Trace, device: Profile, settings: Settings, used: int, counts: list[int], tell: Tell
    ) -> None:
        self._source, self._device, self._settings = Source.of_trace(trace), device, settings
        self._used, self._counts, self._tell, self._done = used, counts, tell, 0
        self._lost = {count: _weight_lost(trace, count) for count in counts}
        table = device.flash.table
        self.lanes = list(table.queue_depth) if table else []

    def rows(self, dram: str | int, total: int) -> list[Row]:
        """The setups at one amount of DRAM; those of the fastest cache also with other numbers of reads at once."""
        rows = [self._row(dram, count, *cache, total) for count in self._counts for cache in CACHES]
        own = [row for row in rows if row.experts == self._used]
        best = max(own, key=lambda row: row.tokens_per_second)
        tried = [
            self._row(dram, self._used, best.scope, best.eviction, total, lanes)
            for lanes in self.lanes
            if lanes != best.lanes
        ]
        bound = replace(self._row(dram, self._used, *BOUND, total), bound=True)
        return [*rows, *tried, bound]

    def _row(self, dram: str | int, count: int, scope: str, eviction: str, total: int, lanes: int | None = None) -> Row:
        device = self._device
        if lanes is not None:
            device = device.model_copy(update={"flash": device.flash.model_copy(update={"queue_depth": lanes})})
        policy = self._policy(count)
        run = self._run(device, dram, scope, eviction, policy)
        result = measure(run, replay.count(run))  # without the comparison with a device's flags, which takes time
        self._done += 1
        self._tell(self._done, total)
        return self._row_of(run, result, count, scope, eviction, device.flash.queue_depth)

    def _policy(self, count: int) -> tuple[str, Policy]:
        return POLICIES.make("router") if count == self._used else POLICIES.make("router-k", {"k": count})

    def _run(self, device: Profile, dram: str | int, scope: str, eviction: str, policy: tuple[str, Policy]) -> Run:
        settings = Settings(**{**_given(self._settings), "dram": dram, "cache_scope": scope})
        conditions = Conditions(device, EVICTIONS.make(eviction)[1], settings, eviction)
        return conditions.run(self._source, policy[1], policy[0])

    def _row_of(self, run: Run, result: Result, count: int, scope: str, eviction: str, lanes: int | None) -> Row:
        where, requested = run.placement.bytes, sum(group.requests * group.unit_bytes for group in result.groups)
        return Row(
            dram=where.budget,
            pinned=where.reserved + where.pinned,
            cache=where.cache,
            experts=count,
            weight_lost=self._lost[count],
            demand=requested // result.tokens,
            scope=scope,
            eviction=eviction,
            lanes=lanes,
            hit_rate=result.hit_rate or 0.0,
            flash_bytes=result.flash_bytes / result.tokens,
            tokens_per_second=result.throughput_tok_s,
        )


def _given(settings: Settings) -> dict[str, Any]:
    """The options of `settings` that differ from their defaults."""
    names = Settings.model_fields
    return {name: value for name in names if (value := getattr(settings, name)) != names[name].default}


def _weight_lost(trace: Trace, count: int) -> float | None:
    """Share of the router's weight in the decode that the first `count` experts leave out; None without weights."""
    if not trace.has("expert_weights"):
        return None
    rows = Sequences(trace.header.sequences).rows()
    whole = kept = 0.0
    for layer in trace.model.layers_with("experts"):
        weights = trace.read(layer, "expert_weights").astype(np.float64)[rows]
        chosen = trace.read(layer, "experts")[rows] >= 0
        whole += float(weights[chosen].sum())
        kept += float(weights[:, :count][chosen[:, :count]].sum())
    return 1 - kept / whole if whole else None


def _recommend(rows: list[Row], used: int) -> str:
    """Mark the recommended row, and say why."""
    candidates = [row for row in rows if row.experts == used and not row.bound]
    fastest = max(row.tokens_per_second for row in candidates)
    best = next(
        row for row in sorted(candidates, key=lambda row: row.lanes or 0) if row.tokens_per_second >= 0.999 * fastest
    )
    rows[rows.index(best)] = replace(best, recommended=True)
    caches = "one cache for all layers" if best.scope == "global" else "a cache for each layer"
    lanes = f", {best.lanes} reads at once" if best.lanes else ""
    text = (
        f"{caches} under {best.eviction}{lanes}: {best.tokens_per_second:.3g} tokens/s with the model's {used} experts."
    )
    if not best.cache:
        return f"{text} What every token reads leaves nothing for a cache."
    if best.cache < best.demand:
        fitting = [row.experts for row in rows if row.demand <= row.cache and not row.bound]
        fewer = f" {max(fitting)} experts fit." if fitting else " Nor do fewer experts, of those that were tried, fit."
        more = show_size(best.demand - best.cache)
        beyond = f" Caches by layer keep what their last token needed, up to {more} more than was given."
        return (
            f"{text} The cache is smaller than what one token needs, so one cache for all layers finds nothing under "
            f"LRU.{fewer}{beyond if best.scope == 'layer' else ''}"
        )
    bound = next(row for row in rows if row.bound)
    return f"{text} It finds {best.hit_rate:.1%}; Belady's rule, which knows the future, {bound.hit_rate:.1%}."
