"""Division of the cache bytes: equally, or in proportion to weights that were measured or given.

All arithmetic is in whole numbers, and shares are rounded down, so that their sum never exceeds the total.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwsim.errors import SettingError
from hwsim.util.explain import problem

_DIGITS = 15  # most digits of a weight

Scope = Literal["matrix", "layer", "global"]
"""Groups that share a cache: none, all groups of a layer, or all groups of all layers."""


@dataclass(frozen=True)
class Shared:
    """Caches that groups share.

    Attributes:
        scope: ``layer`` or ``global``.
        sizes: bytes of each cache: one for each layer that has groups, or one for all.
    """

    scope: Scope
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Shares:
    """Weights by layer and group.

    Attributes:
        weights: whole numbers from 0 by (layer, group), or by group for all layers alike; None: measured by a replay
            with equal shares, which must run first.
        source: source of the weights, for results and messages: ``traffic``, the name of a file, or the weights.
    """

    weights: dict[tuple[int, str], int] | dict[str, int] | None
    source: str

    def of(self, groups: list[list[str]]) -> list[list[int]]:
        """Return the weight of each group of each layer.

        Args:
            groups: names of the groups, by layer.

        Raises:
            SettingError: weights of a layer or group are missing or unknown, or all weights are 0.
        """
        wanted = {(layer, group) for layer, names in enumerate(groups) for group in names}
        weights: dict[tuple[int, str], int] = {}
        for key, weight in (self.weights or {}).items():
            if isinstance(key, tuple):
                weights[key] = weight
            else:  # of all layers that have groups
                weights |= {(layer, key): weight for layer, names in enumerate(groups) if names}
        for what, keys in (("lacks", wanted - weights.keys()), ("names", weights.keys() - wanted)):
            if keys:
                layer, group = min(keys)
                names = next(names for names in groups if names)
                raise SettingError(
                    f"--cache-shares {self.source}: {what} layer {layer}, group {group}; it must name exactly the "
                    f"policy's groups, {', '.join(names)}, in each of {sum(map(bool, groups))} layers"
                )
        if not any(weights.values()):
            raise SettingError(f"--cache-shares {self.source}: all shares are 0; use equal")
        return [[weights[layer, group] for group in names] for layer, names in enumerate(groups)]


def divide(total: int, weights: list[int], most: list[int]) -> list[int]:
    """Divide `total` bytes in proportion to `weights`, with an upper limit `most` for each share.

    Shares that would reach their limit get the limit; the rest is divided among the others in the same proportion,
    until no share exceeds its limit. Shares are rounded down. A share with weight 0 is 0.
    """
    given, left = [0] * len(weights), total
    open_ = [index for index, weight in enumerate(weights) if weight]
    while open_:
        whole = sum(weights[index] for index in open_)
        full = [index for index in open_ if left * weights[index] >= most[index] * whole]
        for index in full or open_:
            given[index] = most[index] if full else left * weights[index] // whole
        left -= sum(given[index] for index in full)
        open_ = [index for index in open_ if index not in set(full)] if full else []
    return given


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    layer: int = Field(ge=0)
    group: str
    flash_bytes: int = Field(ge=0)


class _File(BaseModel):
    model_config = ConfigDict(extra="ignore")

    groups: list[_Entry] = Field(min_length=1)


def shares_file(text: str) -> Path | None:
    """The file that a value of ``--cache-shares`` names; None if the value is a word or weights of groups."""
    weights = "=" in text and not Path(text).exists()
    return None if text in ("equal", "traffic") or weights else Path(text)


def parse_shares(text: str) -> Shares:
    """Parse weights by group for all layers alike: ``input=2,down=1``.

    Raises:
        SettingError: a part is not a weight of a group.
    """
    weights: dict[str, int] = {}
    for part in text.split(","):
        group, _, weight = (text.strip() for text in part.partition("="))
        if not group or group in weights or not weight.isascii() or not weight.isdecimal() or len(weight) > _DIGITS:
            raise SettingError(
                f"--cache-shares {text}: {part.strip()!r} is no weight of a group; write equal, traffic, a file, or a "
                "whole number for each group, such as input=2,down=1"
            )
        weights[group] = int(weight)
    return Shares(weights, ",".join(f"{group}={weight}" for group, weight in weights.items()))


def read_shares(path: Path) -> Shares:
    """Read weights from a result of ``--json``, or a JSON object with a list `groups` of the same form.

    Shares are proportional to ``flash_bytes`` of each entry.

    Raises:
        SettingError: there is no such file, or it has no such list.
    """
    try:
        content = _File.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise SettingError(f"--cache-shares {path}: cannot be read: {error.strerror or 'it is damaged'}") from error
    except ValidationError as error:
        raise SettingError(
            f"--cache-shares {path}: {problem(error).text}; it must be a result of --json, or an object with "
            "groups: a list of {layer, group, flash_bytes}"
        ) from error
    except ValueError as error:
        raise SettingError(f"--cache-shares {path}: is no JSON; name a result that --json wrote") from error
    weights: dict[tuple[int, str], int] = {}
    for entry in content.groups:
        if (entry.layer, entry.group) in weights:
            raise SettingError(f"--cache-shares {path}: names layer {entry.layer}, group {entry.group} twice")
        weights[entry.layer, entry.group] = entry.flash_bytes
    return Shares(weights, path.name)


def measured(flash_bytes: dict[tuple[int, str], int]) -> Shares:
    """Weights from the bytes that a replay read from Flash, by layer and group."""
    return Shares(flash_bytes, "traffic")
