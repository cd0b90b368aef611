"""No cache at all: every needed unit is read from Flash."""

from __future__ import annotations

from typing import ClassVar

from hwsim.evictions import Eviction


class NoCache(Eviction):
    """No cache: every needed unit is read from Flash at every token."""

    caches: ClassVar[bool] = False
    shares: ClassVar[bool] = True
