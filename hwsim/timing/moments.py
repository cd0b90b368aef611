"""Observers of the event engine, which receive what each device does and when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hwsim.cache.cache import CacheSetup
from hwsim.masking.observers import Observer
from hwsim.timing.work import Decode


@dataclass(frozen=True, eq=False)
class Beginning:
    """Description of a decode that begins.

    Attributes:
        decode: the decode.
        caches: admission and initial content of the caches.
        about: names of policy, device and model, and the source, as in the result.
    """

    decode: Decode
    caches: CacheSetup
    about: dict[str, Any]


class MomentObserver(Observer):
    """Receives the moments of a decode, for example for a timeline.

    With such an observer, the event engine simulates every decode.
    """

    def begin(self, beginning: Beginning) -> None:
        """Called when a decode begins."""

    def slice(self, track: str, what: str, at: tuple[int, int, int], start: float, seconds: float) -> None:
        """Called when a device works for the account `what` of (token, layer, slot); slot -1: what no mask cuts.

        On track ``decoder``, the slice is a layer of the decoder, or a token if the layer is -1.
        """

    def ahead(self, device: str, what: str, at: tuple[int, int, int], start: float, end: float, share: float) -> None:
        """Called when a share of something was read ahead in idle time, between `start` and `end`."""
