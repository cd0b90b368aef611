"""The context that a scan shows to a policy, with what the scan alone may set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from hwsim.errors import BlindError
from hwsim.policy import Context, Magnitudes

BEFOREHAND = "belady must know all masks beforehand; choose another --eviction"


@dataclass
class ScanContext(Context):
    """A context whose cache and stored signals are known; policies see the attributes of `Context` alone.

    Attributes:
        halves: of the signals of many tokens, those that are stored as float16.
    """

    halves: Mapping[str, np.ndarray] = field(default_factory=dict)
    _cached: np.ndarray | None = None
    _blind: str = BEFOREHAND

    def begin(self, rng: np.random.Generator, cached: np.ndarray | None, blind: str = "") -> None:
        """A sequence begins: fresh state, and no token yet.

        Args:
            rng: random numbers of this sequence.
            cached: the cache's read-only view, bool ``[units]``; None: the policy may not read it.
            blind: why; the default is what a rule that needs the future asks for.
        """
        self.state, self.rng, self.token = {}, rng, -1
        self._cached, self._blind = cached, blind or BEFOREHAND

    @property
    def cached(self) -> np.ndarray:
        """bool ``[units]``, read-only."""
        if self._cached is None:
            raise BlindError(f"reads ctx.cached, but {self._blind}")
        return self._cached

    def magnitudes(self, signal: str) -> Magnitudes | np.ndarray:
        """Not computed where the signal is stored as float16."""
        halves = self.halves.get(signal)
        return super().magnitudes(signal) if halves is None else Magnitudes(halves)
