"""A decode described only by its bytes, hit rate and compute time, as published measurements state them."""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from hwsim.device.flash_times import FlashTimes, stream_seconds
from hwsim.device.profile import Profile
from hwsim.timing.overlap import find
from hwsim.timing.work import Work
from hwsim.util.units import Rate, Time, parse

Bytes = Annotated[float, BeforeValidator(lambda text: float(parse(text, "size")))]
"""A mean size, which need not be whole."""
_TOKENS = 256  # enough for the mean time of a token to be exact to a percent


def _without_guesses(overlap: str) -> str:
    if find(overlap).guesses:
        raise ValueError(f"overlap {overlap}: no masks are known that could be guessed")
    return overlap


class Workload(BaseModel):
    """The work of each token.

    Attributes:
        layers: number of times that a token waits for Flash.
        units: units that a layer needs, `unit` bytes each, read from Flash in `reads` pieces.
        hit_rate: share of units that is cached, drawn anew for each layer and token.
        compute: compute time of a token, divided equally over the units.
        flash: bytes that are read from Flash in one piece before the layers.
        weights: bytes that arithmetic reads from DRAM.
        weight_rate: rate of reading them; None: the device's.
        flash_rate: flat rate of Flash; None: the device's.
        lanes: outstanding reads; None: the device's.
        overlap: the overlap mode.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    layers: int = Field(1, ge=1, le=1000)
    units: int = Field(0, ge=0, le=10**6)
    unit: Bytes | None = None
    reads: int = Field(1, ge=1, le=10**6)
    hit_rate: float = Field(0.0, ge=0, le=1)
    compute: Time = 0.0
    flash: Bytes | None = None
    weights: Bytes | None = None
    weight_rate: Rate | None = None
    flash_rate: Rate | None = None
    lanes: int | None = Field(None, ge=1, le=2**16)
    overlap: Annotated[str, AfterValidator(_without_guesses)] = "none"

    @model_validator(mode="after")
    def _check(self) -> Workload:
        if self.units and self.unit is None:
            raise ValueError("units need their bytes: unit")
        return self

    def device(self, profile: Profile) -> Profile:
        """The profile of the measurement's device, with the rates of the workload."""
        flash = {}
        if self.flash_rate is not None:
            flash = {"read_bandwidth": self.flash_rate, "table": None, "queue": None}
        if self.lanes is not None:
            flash["queue_depth"] = self.lanes
        dram = {} if self.weight_rate is None else {"bandwidth": self.weight_rate, "peak_bandwidth": None}
        update = {"flash": profile.flash.model_copy(update=flash), "dram": profile.dram.model_copy(update=dram)}
        return profile.model_copy(update=update)

    def load(self, profile: Profile, seed: int = 0) -> Work:
        """The work of `_TOKENS` tokens on a device."""
        device = self.device(profile)
        shape = (_TOKENS, self.layers, 1)
        misses = np.random.default_rng(seed).binomial(self.units, 1.0 - self.hit_rate, shape)
        size = (self.unit or 0) / self.reads
        share = np.divide(misses, self.units, out=np.zeros(shape), where=self.units > 0)
        compute = self.compute / self.layers
        nothing = np.zeros(shape)
        steps = np.zeros(self.layers + 1)
        steps[: self.layers] = (self.weights or 0) / device.dram.bandwidth / self.layers
        streamed = np.zeros((1, self.layers + 1))
        streamed[0, 0] = stream_seconds(device.flash, self.flash or 0)
        return Work(
            resident=steps,
            streamed=streamed,
            kv_cache=np.zeros((_TOKENS, self.layers)),
            unmasked=np.zeros((_TOKENS, self.layers + 1)),
            selection=nothing,
            flash=FlashTimes(device.flash).seconds([(misses * self.reads, np.full(shape, size))]),
            dram=nothing,
            fills=nothing,
            on_hits=compute * (1.0 - share),
            on_misses=compute * share,
            parts=(("mlp",),) * self.layers,
        )
