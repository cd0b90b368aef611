"""Results of timing: the time of every token, where the time goes, and how long each device worked."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Busy:
    """How long each device worked, s.

    A decode takes at least as long as the largest of the three, and at most as long as all three together.
    """

    flash: float
    dram: float
    compute: float


@dataclass(frozen=True)
class Times:
    """Where the time of a whole decode goes, in seconds; all other fields add up to `total`.

    Attributes:
        total: time of the decode.
        resident: reading weights that no mask cuts from DRAM.
        kv_cache: reading entries of the KV cache from DRAM.
        streamed: reading weights that do not fit into DRAM from Flash.
        compute: arithmetic.
        masked: reading units of masks from DRAM and Flash, by the label of their group's part of the model.
    """

    total: float
    resident: float
    kv_cache: float
    streamed: float
    compute: float
    masked: dict[str, float] = field(default_factory=dict)

    @property
    def by_account(self) -> list[float]:
        """Seconds of every account: resident, KV cache, streamed, compute, then the masked parts."""
        return [self.resident, self.kv_cache, self.streamed, self.compute, *self.masked.values()]


@dataclass(frozen=True, eq=False)
class Timing:
    """The result of a timing model.

    Attributes:
        token_s: float64 ``[tokens]``: time of each token, s.
        times: where the time goes.
        busy: how long each device worked.
        events: services of Flash, DRAM and compute that the event engine went through; 0 with the closed form.
        guessed: float64 ``[tokens, layers, groups]``: share of each prediction that was read in time; None without.
    """

    token_s: np.ndarray
    times: Times
    busy: Busy
    events: int = 0
    guessed: np.ndarray | None = None


class Account:
    """Seconds that are spent for one purpose.

    Attributes:
        name: ``resident``, ``kv_cache``, ``streamed``, ``compute`` or the label of a masked part.
        seconds: spent so far.
    """

    __slots__ = ("name", "seconds")

    def __init__(self, name: str) -> None:
        self.name, self.seconds = name, 0.0


class Accounts:
    """All accounts of a decode.

    Args:
        parts: labels of masked parts. A label may be any text, even the name of another account.
    """

    def __init__(self, parts: Iterable[str]) -> None:
        self.resident, self.kv_cache = Account("resident"), Account("kv_cache")
        self.streamed, self.compute = Account("streamed"), Account("compute")
        self.masked = {part: Account(part) for part in parts}

    def times(self, total: float) -> Times:
        """The times of a decode that took `total` seconds."""
        return Times(
            total=total,
            resident=self.resident.seconds,
            kv_cache=self.kv_cache.seconds,
            streamed=self.streamed.seconds,
            compute=self.compute.seconds,
            masked={part: account.seconds for part, account in self.masked.items()},
        )
