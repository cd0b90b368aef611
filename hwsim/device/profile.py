"""The hardware profile: a YAML file that describes Flash, DRAM, compute and energy of one device.

Every number has a unit in the file and is a plain SI number here. Sections name their `source` and `confidence`:
measured, vendor, derived or assumed. The confidence is that of the weakest number in the section that a replay uses. A
section that names none has the profile's own. In the profiles that come with hwsim this is the confidence of the
weakest section, energy excepted. An unknown key is an error, so that a misspelt one is not silently ignored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from hwsim.device.flash import Flash, FlashQueue, FlashTable, Spread, Thermal
from hwsim.device.section import Confidence, Section, inherited
from hwsim.errors import ProfileError, did_you_mean
from hwsim.util.explain import problem
from hwsim.util.files import data_folder
from hwsim.util.units import ComputeRate, EnergyPerByte, EnergyPerOperation, Power, Rate, Size, Time
from hwsim.util.yamlfile import read_yaml

__all__ = [
    "Compute", "Confidence", "Dram", "Energy", "Flash", "FlashQueue", "FlashTable", "Kind", "Profile", "Spread",
    "Thermal", "find_profile", "known_profiles", "load_profile",
]  # fmt: skip

Kind = Literal["flagship phone", "phone", "low-end phone", "laptop", "desktop", "single board"]


class Dram(Section):
    """DRAM: the bytes that the model may use, and the read bandwidth."""

    budget: Size = Field(description="bytes that the model may use")
    bandwidth: Rate = Field(description="sustained read bandwidth, bytes a second")
    peak_bandwidth: Rate | None = Field(None, description="theoretical peak, for information")
    engines: dict[str, Rate] | None = Field(None, description="sustained read bandwidth by engine, such as cpu, npu")

    @model_validator(mode="after")
    def _check(self) -> Dram:
        if self.peak_bandwidth is not None:
            for name, rate in {"bandwidth": self.bandwidth, **(self.engines or {})}.items():
                if rate > self.peak_bandwidth:
                    raise ValueError(f"{name} is above peak_bandwidth")
        return self


def _rates(value: Any) -> Any:
    if not isinstance(value, dict) or not value:
        raise ValueError("must map bits of a weight to rates, such as '4: 2 TOPS'")
    try:
        return {float(bits): rate for bits, rate in value.items()}
    except (TypeError, ValueError) as error:
        raise ValueError(f"{error}; must map bits of a weight to rates, such as '4: 2 TOPS'") from error


class Compute(Section):
    """Arithmetic of one token at batch size 1."""

    rate: ComputeRate | None = Field(None, description="multiply and add count as two operations, operations a second")
    rates: Annotated[dict[float, ComputeRate], BeforeValidator(_rates)] | None = Field(
        None, description="the same by the bits of a weight"
    )
    overhead: Time | None = Field(None, description="fixed cost of starting one group's kernel, s")
    selection: Time | None = Field(None, description="choosing a mask, for each unit it is chosen from, s")
    bookkeeping: Time | None = Field(None, description="keeping the cache, for each unit that is needed, s")

    @model_validator(mode="after")
    def _check(self) -> Compute:
        if self.rate is not None and self.rates is not None:
            raise ValueError("rate and rates both say how fast arithmetic is; give one of the two")
        if self.rates and min(self.rates) <= 0:
            raise ValueError(f"rates: {min(self.rates):g} bits; must be more than 0")
        return self

    def rate_for(self, bits: float) -> float | None:
        """Operations a second with weights of `bits` bits, by the next wider rate in the profile; None if unknown."""
        if self.rates is None:
            return self.rate
        widths = sorted(self.rates)
        return self.rates[next((width for width in widths if width >= bits), widths[-1])]


class Energy(Section):
    """Energy by source."""

    dram_read: EnergyPerByte = Field(description="J/B")
    flash_read: EnergyPerByte = Field(description="J/B")
    dram_write: EnergyPerByte | None = Field(None, description="of what enters the cache, J/B")
    compute: EnergyPerOperation | None = Field(None, description="J an operation")
    base_power: Power | None = Field(None, description="what the device draws besides, W")


class Profile(Section):
    """One device."""

    name: str = Field(min_length=1)
    kind: Kind | None = Field(None, description="of device")
    dram: Dram
    flash: Flash
    compute: Compute | None = None
    energy: Energy | None = None

    @model_validator(mode="after")
    def _inherit(self) -> Profile:
        """Give sections without source or confidence the profile's, and parts of Flash those of their section."""
        for name in ("dram", "flash", "compute", "energy"):
            section = getattr(self, name)
            if section is not None:
                complete = inherited(section, self)
                # the model is frozen outside its validators
                self.__dict__[name] = complete.with_sources() if isinstance(complete, Flash) else complete
        return self


_SECTIONS: dict[str, type[Section]] = {
    "dram": Dram,
    "flash": Flash,
    "table": FlashTable,
    "queue": FlashQueue,
    "thermal": Thermal,
    "spread": Spread,
    "compute": Compute,
    "energy": Energy,
}


def known_profiles() -> dict[str, Path]:
    """The profiles that come with hwsim: files by name."""
    return {path.stem: path for path in sorted(data_folder("hw_profiles").glob("*.yaml"), key=lambda path: path.stem)}


def find_profile(name: str) -> Path:
    """The file of a profile, by path or, if there is no such file, by a known name with or without ``.yaml``.

    Raises:
        ProfileError: neither a file nor a known name.
    """
    path = Path(name)
    if path.is_file():
        return path
    known = known_profiles()
    stem = name.removesuffix(".yaml").removesuffix(".yml")
    if stem in known:
        return known[stem]
    raise ProfileError(f"device {name!r} is neither a file nor a known profile{did_you_mean(stem, known)}")


def load_profile(name: str | Path) -> Profile:
    """Read and check a profile, by path or by name.

    Raises:
        ProfileError: not found, not YAML, or a field that is missing, unknown, without unit or out of bounds.
    """
    path = find_profile(str(name))
    data = read_yaml(path, ProfileError, "hardware profile", "name, dram and flash")
    try:
        return Profile.model_validate(data)
    except ValidationError as error:
        raise ProfileError(f"{path}: {_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    """The first problem of a profile, as field, rule and a hint for a misspelt key."""
    issue = problem(error)
    if not issue.unknown:
        return issue.text
    parent = str(issue.loc[-2]) if len(issue.loc) > 1 else ""
    section = _SECTIONS.get(parent, Profile)
    return f"{issue.text}{did_you_mean(str(issue.loc[-1]), section.model_fields)}"
