"""What is counted: the result of one replay, as the command line prints it and ``--json`` writes it."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from hwsim.simulation.frames import Kind, frame, rows_of, to_html
from hwsim.timing import times


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Latency(_Record):
    """Time of one decoded token, s; percentiles interpolate linearly."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: float


class Times(_Record):
    """Where the time of the whole decode goes, s; the parts add up to `total`."""

    total: float
    resident: float  # weights that no mask cuts, from DRAM
    kv_cache: float  # from DRAM
    streamed: float  # weights that do not fit, from Flash
    mlp: float  # the masked units of the MLP, from DRAM and Flash
    attention: float  # the masked units of the attention
    compute: float  # arithmetic and its fixed costs, where the profile knows them

    @classmethod
    def of(cls, times: times.Times) -> Times:
        """As timing answers it."""
        masked = {part: times.masked.get(part, 0.0) for part in ("mlp", "attention")}
        return cls(
            total=times.total, resident=times.resident, kv_cache=times.kv_cache, streamed=times.streamed,
            compute=times.compute, **masked,
        )  # fmt: skip


class Busy(_Record):
    """How long each device worked, s; the decode can take no less than the longest, and no more than all together."""

    flash: float
    dram: float
    compute: float


class EnergyBySource(_Record):
    """Energy of the whole decode, J; None: the profile does not know it."""

    flash: float
    dram_read: float
    dram_write: float | None
    compute: float | None
    base: float | None


class Prefetched(_Record):
    """What was read ahead, over the whole decode."""

    rule: str
    precision: float | None  # share of the guessed units, not cached, that were needed
    recall: float | None  # share of the misses that were guessed
    read_bytes: int  # that were read in time
    wasted_bytes: int  # of them, for nothing


class GroupResult(_Record):
    """One group of one layer, over the whole decode."""

    layer: int
    group: str
    units: int
    capacity_units: int
    unit_bytes: int
    requests: int
    hits: int
    flash_bytes: int
    dram_bytes: int


class TokenResult(_Record):
    """One decoded token."""

    latency_s: float
    requests: int
    hits: int
    flash_bytes: int
    dram_bytes: int


class Result(_Record):
    """What a replay found; version 1 of the result file. Sizes are bytes, times seconds, energy joules."""

    format: Literal["hwsim-result"] = "hwsim-result"
    version: Literal[1] = 1
    provenance: dict[str, Any]
    notes: list[str]
    tokens: int
    throughput_tok_s: float
    latency_s: Latency
    ttft_s: float | None
    time_s: Times
    unit_requests: int
    unit_hits: int
    hit_rate: float | None
    mlp_density: float
    flash_bytes: int
    flash_read_bytes: int  # what Flash reads for them, in whole pages
    dram_bytes: int
    resident_bytes: int
    kv_cache_bytes: int
    streamed_bytes: int
    cache_bytes: int
    budget_bytes: int
    energy_j: float | None
    energy_by_source_j: EnergyBySource | None
    power_w: float | None  # mean over the decode
    busy_s: Busy
    prefetch: Prefetched | None
    events: int  # services of Flash, DRAM and compute that the event engine went through; 0 with the closed form
    groups: list[GroupResult]
    per_token: list[TokenResult] | None = None

    def plain(self) -> dict[str, Any]:
        """The result as it is written, for a file of several."""
        return self.model_dump(exclude=self._left_out())

    def to_json(self) -> str:
        """The result file: the same run gives the same bytes."""
        return self.model_dump_json(indent=2, exclude=self._left_out()) + "\n"

    def to_frame(self, kind: Kind = "summary") -> Any:
        """As a DataFrame of pandas.

        Args:
            kind: ``summary``, all single numbers in one row; ``groups``, a row for each group of each layer;
                ``tokens``, a row for each token, of a replay with `per_token`.

        Raises:
            SettingError: pandas is not installed, there is no such table, or tokens were not kept.
        """
        return frame(rows_of(self.plain(), kind))

    def _repr_html_(self) -> str:
        return to_html([self.plain()])

    def _left_out(self) -> set[str]:
        return {"per_token"} if self.per_token is None else set()


class Evaluation(Result):
    """What a closed loop found: speed as a replay counts it, and what it costs in accuracy. Losses are in nats."""

    perplexity: float
    dense_perplexity: float  # over the same tokens
    kl: float  # mean divergence of the policy's next-token distribution from the dense model's
    top1: float  # share of tokens at which both have the same first choice
    tokens_scored: int


class TaskEvaluation(Result):
    """What a closed loop found on tasks of lm-eval: speed as a replay counts it, and lm-eval's own results.

    Attributes:
        lm_eval: `results` of the policy and `dense_results` of the dense model, by task, as lm-eval writes them; and
            what it says about both: `versions`, `n-shot`, `n-samples`, `higher_is_better`.
    """

    lm_eval: dict[str, Any]


def latency(seconds: np.ndarray) -> Latency:
    """Statistics of token times, float64 ``[tokens]`` in s."""
    p50, p95, p99 = (float(value) for value in np.percentile(seconds, [50, 95, 99]))
    return Latency(mean=float(seconds.mean()), p50=p50, p95=p95, p99=p99, max=float(seconds.max()))
