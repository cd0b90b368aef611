"""What serves requests in SimPy."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy


class Device:
    """Something that serves requests one after the other, in the order in which they come.

    Of such a server all that a request must know is when the one before it is done, so that a service is one event of
    SimPy; with a `simpy.Resource` it was three.

    Work that nobody waits for yet, such as weights that are read ahead, is done in the time in which nobody asks: it
    never delays a request, as the device turns to those first, from command to command.

    Attributes:
        busy: seconds for which it has worked.
        requests: how many it has served.
    """

    def __init__(self, env: simpy.Environment, name: str) -> None:
        self.name, self.busy, self.requests = name, 0.0, 0
        self._env = env
        self._free = 0.0  # when all that came before is done

    def serve(self, seconds: float) -> Generator[simpy.Event, Any, None]:
        """Wait for a turn, then work for `seconds`."""
        now = self._env.now
        delay = max(self._free - now, 0.0) + seconds
        self._free = now + delay
        yield self._env.timeout(delay)
        self.busy += seconds
        self.requests += 1

    def wait(self, seconds: float) -> float:
        """As `serve`, for one who waits for several devices: how long from now on until it is done."""
        now = self._env.now
        self._free = max(self._free, now) + seconds
        self.busy += seconds
        self.requests += 1
        return self._free - now

    def idle(self, since: float, busy: float) -> float:
        """Seconds since the moment `since` in which it did nothing; `busy` was its count of work then."""
        return max(self._env.now - since - (self.busy - busy), 0.0)
