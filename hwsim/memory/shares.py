"""How the cache's bytes are divided: equally, or in proportion to weights that were measured or given.

All arithmetic is in whole numbers, and shares are rounded down, so that their sum never exceeds what there is.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hwsim.errors import SettingError
from hwsim.util.explain import problem

_DIGITS = 15  # of a weight

Scope = Literal["matrix", "layer", "global"]
"""Who shares a cache: nobody, all groups of a layer, or all groups of all layers."""


@dataclass(frozen=True)
class Shared:
    """Caches that groups share.

    Attributes:
        scope: ``layer`` or ``global``.
        sizes: bytes of each: one for each layer, or one.
    """

    scope: Scope
    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Shares:
    """Weights by layer and group.

    Attributes:
        weights: whole numbers from 0 by (layer, group), or by group, alike in all layers; None: of a replay with equal
            shares, which must run first.
        source: where they are from, for results and messages: ``traffic``, the name of a file, or the weights.
    """

    weights: dict[tuple[int, str], int] | dict[str, int] | None
    source: str

    def of(self, layers: int, groups: list[str]) -> list[list[int]]:
        """Weights ``[layers][groups]``.

        Raises:
            SettingError: layers or groups are missing, or are none of the model's and policy's; all weights are 0.
        """
        wanted = {(layer, group) for layer in range(layers) for group in groups}
        weights: dict[tuple[int, str], int] = {}
        for key, weight in (self.weights or {}).items():
            weights |= {key: weight} if isinstance(key, tuple) else {(layer, key): weight for layer in range(layers)}
        for what, keys in (("lacks", wanted - weights.keys()), ("names", weights.keys() - wanted)):
            if keys:
                layer, group = min(keys)
                raise SettingError(
                    f"--cache-shares {self.source}: {what} layer {layer}, group {group}; it must name exactly the "
                    f"policy's groups, {', '.join(groups)}, in each of {layers} layers"
                )
        if not any(weights.values()):
            raise SettingError(f"--cache-shares {self.source}: all shares are 0; use equal")
        return [[weights[layer, group] for group in groups] for layer in range(layers)]


def divide(total: int, weights: list[int], most: list[int]) -> list[int]:
    """Divide `total` bytes in proportion to `weights`, nobody getting more than `most`.

    Those whose share would be at least their `most` get that; what is left is divided among the others in the same
    proportion, until nobody is above. Shares are rounded down. The bytes of those with weight 0 are 0.
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
    """The file that a value of ``--cache-shares`` names; None: it is a word, or weights of groups."""
    weights = "=" in text and not Path(text).exists()
    return None if text in ("equal", "traffic") or weights else Path(text)


def parse_shares(text: str) -> Shares:
    """Weights by group, alike in all layers: ``input=2,down=1``.

    Raises:
        SettingError: a part is no weight of a group.
    """
    weights: dict[str, int] = {}
    for part in text.split(","):
        group, _, weight = (each.strip() for each in part.partition("="))
        if not group or group in weights or not weight.isascii() or not weight.isdecimal() or len(weight) > _DIGITS:
            raise SettingError(
                f"--cache-shares {text}: {part.strip()!r} is no weight of a group; write equal, traffic, a file, or a "
                "whole number for each group, such as input=2,down=1"
            )
        weights[group] = int(weight)
    return Shares(weights, ",".join(f"{group}={weight}" for group, weight in weights.items()))


def read_shares(path: Path) -> Shares:
    """Weights from a result that ``--json`` wrote, or any JSON object with a list `groups` of the same form.

    Shares are proportional to each entry's ``flash_bytes``.

    Raises:
        SettingError: no such file, or it has no such list.
    """
    try:
        found = _File.model_validate(json.loads(path.read_text()))
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
    for entry in found.groups:
        if (entry.layer, entry.group) in weights:
            raise SettingError(f"--cache-shares {path}: names layer {entry.layer}, group {entry.group} twice")
        weights[entry.layer, entry.group] = entry.flash_bytes
    return Shares(weights, path.name)


def measured(flash_bytes: dict[tuple[int, str], int]) -> Shares:
    """Weights from the bytes that a replay read from Flash, by layer and group."""
    return Shares(flash_bytes, "traffic")
