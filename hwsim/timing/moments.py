"""Observers of the event engine: what each device did, and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hwsim.cache.cache import CacheSetup
from hwsim.masking.observers import Observer
from hwsim.timing.work import Decode


@dataclass(frozen=True, eq=False)
class Beginning:
    """What a decode is about.

    Attributes:
        decode: what it asks for.
        caches: how they admit, and what is in them from the start.
        about: names of policy, device and model, and the source, as the result tells them.
    """

    decode: Decode
    caches: CacheSetup
    about: dict[str, Any]


class MomentObserver(Observer):
    """Sees the moments of a decode, for example for a timeline. With one, the event engine plays every decode."""

    def begin(self, beginning: Beginning) -> None:
        """A decode begins."""

    def slice(self, track: str, what: str, at: tuple[int, int, int], start: float, seconds: float) -> None:
        """A device works for an account `what` of (token, layer, slot); slot -1: what no mask cuts.

        On track ``decoder`` the decoder was at a layer, or with layer -1 at a token.
        """

    def ahead(self, device: str, what: str, at: tuple[int, int, int], start: float, end: float, share: float) -> None:
        """A share of something was read in idle time between two moments."""
