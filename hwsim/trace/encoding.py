"""How a trace stores the rows of its signals: float16, 8-bit numbers with a scale each, or the largest of each row.

Every encoding has rows of fixed size, so that a token is found by its offset. It stores a signal as a few plain arrays,
its *parts*: ``layers/000/glu``, and others whose names end in a suffix, such as ``layers/000/glu_scale``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

from hwsim.util import kernels

FLOAT16_MAX = 65504.0
LEVELS = 127  # of int8, to either side of 0
_SCALE, _PLACES = "_scale", "_places"
_LARGEST_SCALE = np.float32(FLOAT16_MAX / LEVELS)

Parts = dict[str, np.ndarray]
"""The arrays that store some rows, by suffix: ``[rows, ...]`` each."""


class RowError(Exception):
    """A stored row is invalid: its number, the suffix of the part, and what is wrong."""

    def __init__(self, row: int, part: str, what: str) -> None:
        super().__init__(what)
        self.row, self.part, self.what = row, part, what


class Encoding(BaseModel):
    """How signals are stored.

    Attributes:
        name: ``float16``; ``int8``: signed numbers of 8 bits, and for each row a float32 scale, its largest magnitude
            / 127; ``top``: the largest values of each row as float16, and one bit for each index that says whether
            its value is stored.
        share: share of each row's values that are kept, the largest: floor(share x width), at least one; the others
            read as 0. None: all values are kept. Values that were left out once are missing in every later encoding.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Literal["float16", "int8", "top"] = "float16"
    share: float | None = Field(None, gt=0, lt=1)

    @model_validator(mode="after")
    def _check(self) -> Encoding:
        if self.name == "top" and self.share is None:
            raise ValueError("encoding top needs a share, more than 0 and less than 1")
        return self

    def __str__(self) -> str:
        """Text for messages: ``top, the largest 75% of each row``."""
        return self.name if self.share is None else f"{self.name}, the largest {self.share:.4g} of each row"

    def kept(self, width: int) -> int:
        """The number of values kept of a row of `width` values."""
        return width if self.share is None else kernels.kept(self.share, width)

    def parts(self, width: int) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """The shape and type of one stored row of each part, by suffix."""
        if self.name == "int8":
            return {"": ((width,), np.dtype("i1")), _SCALE: ((), np.dtype("<f4"))}
        if self.name == "top":
            return {"": ((self.kept(width),), np.dtype("<f2")), _PLACES: ((-(-width // 8),), np.dtype("u1"))}
        return {"": ((width,), np.dtype("<f2"))}

    def encode(self, values: np.ndarray) -> Parts:
        """The parts that store some rows.

        Args:
            values: any float ``[rows, width]``, finite and within float16. All encodings first round to float16, so
                recording in an encoding and converting a float16 recording to it give the same bytes.
        """
        if self.name == "float16" and self.share is None:
            return {"": values}
        values = values.astype(np.float16).astype(np.float32)
        kept = self.kept(values.shape[1])
        mask = largest(values, kept)
        if self.name == "top":
            return {"": values[mask].reshape(len(values), kept), _PLACES: np.packbits(mask, axis=1)}
        values = np.where(mask, values, np.float32(0))
        if self.name == "float16":
            return {"": values}
        scale = np.abs(values).max(axis=1, initial=0) / np.float32(LEVELS)
        steps = np.rint(values / np.where(scale > 0, scale, np.float32(1))[:, None])
        return {"": np.clip(steps, -LEVELS, LEVELS).astype(np.int8), _SCALE: scale}

    def decode(self, parts: Parts, width: int) -> np.ndarray:
        """The rows that some parts store: float32 ``[rows, width]``.

        Raises:
            RowError: the first invalid row: NaN, infinity, an impossible scale or index.
        """
        stored = parts[""]
        if self.name == "int8":
            scale = parts[_SCALE]
            wrong = np.logical_not((scale >= 0) & (scale <= _LARGEST_SCALE))  # NaN is neither
            _refuse(wrong, _SCALE, lambda row: f"has {scale[row]}; must be a scale from 0 to {_LARGEST_SCALE:.6g}")
            _refuse(np.any(stored < -LEVELS, axis=1), "", lambda row: f"holds -128; must be from -{LEVELS} to {LEVELS}")
            return stored.astype(np.float32) * scale[:, None]
        _check_finite(stored)
        if self.name == "float16":
            return kernels.widen(stored)
        kept, places = self.kept(width), parts[_PLACES]
        if width % 8:
            beyond = places[:, -1] & (0xFF >> width % 8) > 0
            _refuse(beyond, _PLACES, lambda row: f"names an index beyond the width, {width}")
        mask = np.unpackbits(places, axis=1, count=width).view(bool)
        counts = np.count_nonzero(mask, axis=1)
        _refuse(counts != kept, _PLACES, lambda row: f"names {counts[row]} indices; share {self.share} keeps {kept}")
        block = np.zeros((len(stored), width), np.float32)
        block[mask] = stored.ravel()
        return block

    def halves(self, parts: Parts) -> np.ndarray | None:
        """The rows as stored, float16 ``[rows, width]``; None if the encoding does not store float16.

        Raises:
            RowError: the first row that holds NaN or infinity.
        """
        if self.name != "float16":
            return None
        _check_finite(parts[""])
        return parts[""]


FLOAT16 = Encoding()


def _check_finite(stored: np.ndarray) -> None:
    """Refuse the first row of float16 ``[rows, ...]`` that holds NaN or infinity."""
    if not kernels.all_finite(stored):
        wrong = np.logical_not(kernels.finite(stored).all(axis=1))
        _refuse(wrong, "", lambda row: "holds NaN or infinity; the recording is damaged")


def largest(values: np.ndarray, count: int) -> np.ndarray:
    """Mask of each row's `count` largest magnitudes; ties are broken by the lower index, as in `kernels.top_k`.

    Args:
        values: float32 ``[rows, width]``, no NaN.
        count: 1 to width.

    Returns:
        bool ``[rows, width]``, `count` set in each row.
    """
    width = values.shape[1]
    if count >= width:
        return np.ones(values.shape, bool)
    sizes = np.abs(values)
    least = np.partition(sizes, width - count, axis=1)[:, width - count, None]
    above, equal = sizes > least, sizes == least
    missing = count - np.count_nonzero(above, axis=1)
    return above | (equal & (np.cumsum(equal, axis=1) <= missing[:, None]))


def _refuse(wrong: np.ndarray, part: str, why: Callable[[int], str]) -> None:
    """Refuse the first row that is `wrong`, bool ``[rows]``."""
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise RowError(row, part, why(row))
