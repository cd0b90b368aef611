"""The hardware profile: a YAML file that describes Flash, DRAM, compute and energy of one device.

Every number carries its unit in the file and is a plain SI number here. Sections name their `source` and `confidence`
(measured, vendor, derived, assumed): that of the weakest number in it that a replay uses. A section that names none has
the profile's own, which in the profiles that come with hwsim is that of its weakest section, energy apart. A key that
is not known is an error, so a misspelt one is not silently ignored.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from hwsim.errors import ProfileError, UnitError, did_you_mean
from hwsim.files import data_folder
from hwsim.units import ComputeRate, EnergyPerByte, EnergyPerOperation, Power, Rate, Size, Time, parse, shorten
from hwsim.yamlfile import read_yaml

Confidence = Literal["measured", "vendor", "derived", "assumed"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    source: str | None = None
    confidence: Confidence | None = None
    note: str | None = None


class Dram(_Section):
    """DRAM: how much the model may use, and how fast it is read."""

    budget: Size = Field(description="bytes that the model may use")
    bandwidth: Rate = Field(description="sustained read bandwidth, bytes a second")
    peak_bandwidth: Rate | None = Field(None, description="theoretical peak, for information")

    @model_validator(mode="after")
    def _check(self) -> Dram:
        if self.peak_bandwidth is not None and self.bandwidth > self.peak_bandwidth:
            raise ValueError("bandwidth is above peak_bandwidth")
        return self


def _request_sizes(value: Any) -> Any:
    if not isinstance(value, dict):
        raise ValueError("must map request sizes to rows of bandwidths, such as '4 KiB: [43.4, 86.4]'")
    rows: dict[int, Any] = {}
    for text, row in value.items():
        try:
            size = int(parse(text, "size"))
        except UnitError as error:  # pydantic gives a ValueError the field's path
            raise ValueError(str(error)) from error
        if size in rows:
            raise ValueError(f"{size} B is given twice")
        rows[size] = row
    return rows


_Depth = Annotated[int, Field(gt=0, le=2**16, strict=True)]
_Bandwidth = Annotated[float, Field(gt=0, le=1e18, allow_inf_nan=False)]


class FlashTable(_Section):
    """Measured random-read bandwidth over request size and queue depth, interpolated in log space."""

    unit: Rate = Field(description="what the numbers count, such as 'MB/s': written as '1 MB/s' or 'MB/s'")
    queue_depth: tuple[_Depth, ...] = Field(min_length=1)
    read: Annotated[dict[int, tuple[_Bandwidth, ...]], BeforeValidator(_request_sizes)]

    @model_validator(mode="before")
    @classmethod
    def _bare_unit(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("unit"), str) and not data["unit"][:1].isdigit():
            return data | {"unit": f"1 {data['unit']}"}
        return data

    @model_validator(mode="after")
    def _check(self) -> FlashTable:
        if list(self.queue_depth) != sorted(set(self.queue_depth)):
            raise ValueError(f"queue_depth {list(self.queue_depth)} must rise")
        if not self.read or list(self.read) != sorted(self.read) or min(self.read) < 1:
            raise ValueError("read: request sizes must rise, from at least 1 B")
        for size, row in self.read.items():
            if len(row) != len(self.queue_depth):
                raise ValueError(f"read: {size} B has {len(row)} bandwidths, queue_depth has {len(self.queue_depth)}")
        return self

    def bandwidth(self, request_bytes: float, queue_depth: float) -> float:
        """Bytes a second when requests of `request_bytes` are read at `queue_depth`.

        Between the points linear in log-log space. A request smaller than the smallest measured one takes as long as
        that one, and fewer requests outstanding than the fewest measured as long as those: the device is bound by
        commands there. Beyond the largest request or queue depth nothing is gained.
        """
        sizes = list(self.read)
        size = min(max(request_bytes, sizes[0]), sizes[-1])
        column = _bracket(list(self.queue_depth), min(max(queue_depth, self.queue_depth[0]), self.queue_depth[-1]))
        row = _bracket(sizes, size)
        value = 0.0
        for i, row_weight in row:
            for j, column_weight in column:
                value += row_weight * column_weight * math.log(self.read[sizes[i]][j])
        fraction = min(request_bytes / sizes[0], 1.0) * min(queue_depth / self.queue_depth[0], 1.0)
        return fraction * math.exp(value) * self.unit

    def best(self, queue_depth: float) -> float:
        """Bytes a second of the request size that is read fastest at `queue_depth`: for reads of any size one likes."""
        return max(self.bandwidth(size, queue_depth) for size in self.read)


def _bracket(points: list[int], at: float) -> list[tuple[int, float]]:
    """The neighbours of `at` among rising `points` and their weights, linear in the logarithm."""
    for i, point in enumerate(points):
        if at == point:
            return [(i, 1.0)]  # a measured point is returned as it was measured
        if at < point:
            share = math.log(at / points[i - 1]) / math.log(point / points[i - 1])
            return [(i - 1, 1.0 - share), (i, share)]
    return [(len(points) - 1, 1.0)]


class Flash(_Section):
    """Flash: a flat read bandwidth that every model uses, and what is known beyond it for the event engine."""

    read_bandwidth: Rate = Field(description="flat read bandwidth, bytes a second")
    latency: Time | None = Field(None, description="from issuing a batch of reads to its first byte, s")
    queue_depth: _Depth | None = Field(None, description="reads outstanding at once")
    page_size: Size | None = Field(None, description="a read is rounded up to whole pages, bytes")
    table: FlashTable | None = None

    @model_validator(mode="after")
    def _check(self) -> Flash:
        if self.table is not None and self.latency is not None:
            raise ValueError("latency is part of a measured table; give one of the two")
        if self.table is not None and self.queue_depth is None:
            raise ValueError("queue_depth is needed beside a table: how many reads the decoder keeps outstanding")
        return self


class Compute(_Section):
    """Arithmetic of one token at batch size 1."""

    rate: ComputeRate | None = Field(None, description="multiply and add count as two operations, operations a second")
    overhead: Time | None = Field(None, description="fixed cost of starting one group's kernel, s")


class Energy(_Section):
    """Energy by source."""

    dram_read: EnergyPerByte = Field(description="J/B")
    flash_read: EnergyPerByte = Field(description="J/B")
    compute: EnergyPerOperation | None = Field(None, description="J an operation")
    base_power: Power | None = Field(None, description="what the device draws besides, W")


class Profile(_Section):
    """One device."""

    name: str = Field(min_length=1)
    dram: Dram
    flash: Flash
    compute: Compute | None = None
    energy: Energy | None = None

    @model_validator(mode="after")
    def _inherit(self) -> Profile:
        """Sections that name no source or confidence have the profile's, the table that of its section."""
        for name in ("dram", "flash", "compute", "energy"):
            section = getattr(self, name)
            if section is not None:
                self.__dict__[name] = _inherited(section, self)  # the model is frozen for everybody else
        return self


def _inherited(section: _Section, parent: _Section) -> _Section:
    update: dict[str, Any] = {
        field: getattr(parent, field)
        for field in ("source", "confidence")
        if getattr(section, field) is None and getattr(parent, field) is not None
    }
    section = section.model_copy(update=update) if update else section
    if isinstance(section, Flash) and section.table is not None:
        section = section.model_copy(update={"table": _inherited(section.table, section)})
    return section


_SECTIONS: dict[str, type[_Section]] = {
    "dram": Dram,
    "flash": Flash,
    "table": FlashTable,
    "compute": Compute,
    "energy": Energy,
}


def known_profiles() -> dict[str, Path]:
    """Names and files of the profiles that come with hwsim."""
    return {path.stem: path for path in sorted(data_folder("hw_profiles").glob("*.yaml"))}


def find_profile(name: str) -> Path:
    """The file of a profile: a path first, else a name that comes with hwsim, with or without ``.yaml``.

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
    """The first thing that is wrong, as field: rule."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "missing":
        return f"{field} is missing"
    if first["type"] == "extra_forbidden":
        inside = str(first["loc"][-2]) if len(first["loc"]) > 1 else ""
        section = _SECTIONS.get(inside, Profile)
        return f"{field} is not a known key{did_you_mean(str(first['loc'][-1]), section.model_fields)}"
    if first["type"] == "invalid_key":
        return f"{field} is not a known key{did_you_mean(field, Profile.model_fields)}"
    if first["type"] == "model_type":
        return f"{field}: must be a section of fields (got {shorten(repr(first['input']))})"
    message = first["msg"].removeprefix("Value error, ")
    # our own rules name the value themselves
    shown = "" if first["type"] == "value_error" else f" (got {shorten(repr(first['input']))})"
    return f"{field + ': ' if field else ''}{message}{shown}"
