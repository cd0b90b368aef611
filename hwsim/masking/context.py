"""The context that a scan passes to a policy, with attributes that only the scan sets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from hwsim.errors import BlindError
from hwsim.policy import Context, Magnitudes

BEFOREHAND = "belady must know all masks beforehand; choose another --eviction"


@dataclass
class ScanContext(Context):
    """A context with cache and stored signals; policies use the attributes of `Context` only.

    Attributes:
        halves: the signals of a block of tokens that are stored as float16.
    """

    halves: Mapping[str, np.ndarray] = field(default_factory=dict)
    _cached: np.ndarray | None = None
    _blind: str = BEFOREHAND

    def begin(self, rng: np.random.Generator, cached: np.ndarray | None, blind: str = "") -> None:
        """Begin a sequence with fresh state, before its first token.

        Args:
            rng: random numbers of this sequence.
            cached: the cache's read-only view, bool ``[units]``; None: the policy may not read it.
            blind: reason why it may not; by default that the eviction rule needs the future.
        """
        self.state, self.rng, self.token = {}, rng, -1
        self._cached, self._blind = cached, blind or BEFOREHAND

    def look(self, expert: int | None, cached: np.ndarray | None) -> None:
        """Turn to another expert, within which units are decided."""
        self.expert, self._cached = expert, cached

    @contextmanager
    def without_cache(self, why: str) -> Iterator[None]:
        """A time in which the policy may not read the cache, for the reason `why`."""
        before = self._cached, self._blind
        self._cached, self._blind = None, why
        try:
            yield
        finally:
            self._cached, self._blind = before

    @property
    def cached(self) -> np.ndarray:
        """bool ``[units]``, read-only."""
        if self._cached is None:
            raise BlindError(f"reads ctx.cached, but {self._blind}")
        return self._cached

    def magnitudes(self, signal: str) -> Magnitudes | np.ndarray:
        """Magnitudes of a signal; the stored values if they are float16."""
        halves = self.halves.get(signal)
        return super().magnitudes(signal) if halves is None else Magnitudes(halves)
