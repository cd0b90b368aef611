"""The result of one run, as the command line prints it and ``--json`` writes it."""

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
    """Where the time of the whole decode goes, in seconds; the parts add up to `total`."""

    total: float
    resident: float  # weights that no mask cuts, from DRAM
    kv_cache: float  # from DRAM
    streamed: float  # weights that do not fit, from Flash
    mlp: float  # the masked units of the MLP, from DRAM and Flash
    attention: float  # the masked units of the attention
    compute: float  # arithmetic and its fixed costs, if the profile gives them

    @classmethod
    def of(cls, times: times.Times) -> Times:
        """Convert the times of a timing."""
        masked = {part: times.masked.get(part, 0.0) for part in ("mlp", "attention")}
        return cls(
            total=times.total, resident=times.resident, kv_cache=times.kv_cache, streamed=times.streamed,
            compute=times.compute, **masked,
        )  # fmt: skip


class Busy(_Record):
    """Busy time of each device in seconds; the decode takes at least the longest and at most the sum of these."""

    flash: float
    dram: float
    compute: float


class EnergyBySource(_Record):
    """Energy of the whole decode in joules; None if the profile does not give it."""

    flash: float
    dram_read: float
    dram_write: float | None
    compute: float | None
    base: float | None


class Prefetched(_Record):
    """Prefetch of the whole decode."""

    rule: str
    precision: float | None  # share of the predicted units, not cached, that were needed
    recall: float | None  # share of the misses that were predicted
    read_bytes: int  # bytes that were read ahead in time
    wasted_bytes: int  # bytes of these that were not needed


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


class PromptResult(_Record):
    """All prompts, if they went through the caches; the other numbers of a result are those of the decode."""

    tokens: int
    requests: int
    hits: int
    hit_rate: float | None
    flash_bytes: int  # units that were missed


class DeviceFlags(_Record):
    """Flags of the device that ran the model: whether it had a chosen expert in its cache."""

    rows: int  # chosen experts of decoded tokens
    agree: int  # of which hwsim's cache says the same


class TokenResult(_Record):
    """One decoded token, or one step if it has several."""

    latency_s: float
    requests: int
    hits: int
    flash_bytes: int
    dram_bytes: int


class Result(_Record):
    """The result of a replay; version 1 of the result file. Sizes are bytes, times seconds, energies joules."""

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
    flash_read_bytes: int  # bytes that Flash reads for them, in whole pages
    dram_bytes: int
    resident_bytes: int
    kv_cache_bytes: int
    state_bytes: int = 0  # fixed states of linear attention and convolutions, which lie in DRAM beside the KV cache
    looked_up_bytes: int = 0  # rows of embedding tables that each token reads from Flash
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
    prompt: PromptResult | None = None
    steps: int | None = None  # steps of the decode, if they have several members; `latency_s` is then that of a step
    device_flags: DeviceFlags | None = None
    per_token: list[TokenResult] | None = None

    def plain(self) -> dict[str, Any]:
        """The result as a dictionary for JSON."""
        return self.model_dump(exclude=self._left_out())

    def to_json(self) -> str:
        """The text of the result file; the same run gives the same bytes."""
        return self.model_dump_json(indent=2, exclude=self._left_out()) + "\n"

    def to_frame(self, kind: Kind = "summary") -> Any:
        """The result as a pandas DataFrame.

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
        optional = ("prompt", "steps", "device_flags", "per_token")
        return {name for name in optional if getattr(self, name) is None}


class Evaluation(Result):
    """The result of a closed loop: speed as in a replay, and accuracy. Losses are in nats."""

    perplexity: float
    dense_perplexity: float  # over the same tokens
    kl: float  # mean divergence of the policy's next-token distribution from the dense model's
    top1: float  # share of tokens at which both have the same first choice
    tokens_scored: int


class TaskEvaluation(Result):
    """The result of a closed loop on tasks of lm-eval: speed as in a replay, and lm-eval's own results.

    Attributes:
        lm_eval: `results` of the policy and `dense_results` of the dense model, by task, as lm-eval writes them; and
            lm-eval's data about both: `versions`, `n-shot`, `n-samples`, `higher_is_better`.
    """

    lm_eval: dict[str, Any]


def latency(seconds: np.ndarray) -> Latency:
    """Statistics of token times, float64 ``[tokens]`` in s."""
    p50, p95, p99 = (float(value) for value in np.percentile(seconds, [50, 95, 99]))
    return Latency(mean=float(seconds.mean()), p50=p50, p95=p95, p99=p99, max=float(seconds.max()))
