"""Devices that serve requests in SimPy, and their work in idle time."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import simpy

from hwsim.timing.steps import At

Steps = Generator[simpy.Event, Any, None]
"""A part of the decoder process."""


class Device:
    """A device that serves requests one after the other, in the order in which they arrive.

    A request only needs to know when the request before it is done, so a service is one event of SimPy; with a
    `simpy.Resource` it would be three.

    Work that nothing waits for yet, such as prefetch of weights, is done in idle time. It never delays a request,
    because the device serves requests first, from command to command.

    Attributes:
        busy: seconds spent on requests.
        requests: number of requests served.
        ahead: work in idle time.
    """

    def __init__(self, env: simpy.Environment, name: str) -> None:
        self.name, self.busy, self.requests = name, 0.0, 0
        self._env = env
        self._free = 0.0  # time at which all earlier requests are done
        self.ahead = ReadAhead(self, env)

    @property
    def worked(self) -> float:
        """Seconds of work, including idle time that was used."""
        return self.busy + self.ahead.worked

    def serve(self, seconds: float) -> Steps:
        """Wait for a turn, then work for `seconds`."""
        now = self._env.now
        delay = max(self._free - now, 0.0) + seconds
        self._free = now + delay
        yield self._env.timeout(delay)
        self.busy += seconds
        self.requests += 1

    def wait(self, seconds: float) -> float:
        """As `serve`, for a process that waits for several devices: return the seconds until the service is done."""
        now = self._env.now
        self._free = max(self._free, now) + seconds
        self.busy += seconds
        self.requests += 1
        return self._free - now

    def idle(self, since: float, busy: float) -> float:
        """Idle seconds since the time `since`; `busy` is the value of `self.busy` at that time."""
        return max(self._env.now - since - (self.busy - busy), 0.0)


class ReadAhead:
    """Work of a device that nothing waits for yet: done in idle time, first come, first served, predictions last.

    Work for a group is a prediction; work for what no mask cuts is sure to be needed.

    Attributes:
        worked: seconds of idle time that were used.
    """

    def __init__(self, device: Device, env: simpy.Environment) -> None:
        self._device, self._env = device, env
        self._left: dict[At, float] = {}
        self._whole: dict[At, float] = {}
        self._posted: dict[At, float] = {}
        self._since, self._busy = 0.0, 0.0
        self.worked = 0.0

    def post(self, at: At, seconds: float) -> None:
        """Add work for a later step."""
        self._catch_up()
        if seconds > 0:
            self._left[at] = self._whole[at] = seconds
            self._posted[at] = self._env.now

    def posted(self, at: At) -> float | None:
        """Time at which the work for a step was posted, or None."""
        return self._posted.get(at)

    def claim(self, at: At) -> float:
        """Return the share of a step's work that is done when the step begins, and drop the rest."""
        self._catch_up()
        left = self._left.pop(at, None)
        self._posted.pop(at, None)
        return 0.0 if left is None else 1.0 - left / self._whole.pop(at)

    def forget(self) -> None:
        """Drop all work, because another sequence begins."""
        self._catch_up()
        for works in (self._left, self._whole, self._posted):
            works.clear()

    def _catch_up(self) -> None:
        """Spend the idle time since the last call on the work in its order."""
        idle = self._device.idle(self._since, self._busy)
        self._since, self._busy = self._env.now, self._device.busy
        for at in sorted(self._left, key=_is_guess) if idle > 0 else ():
            left = self._left[at]
            done = min(left, idle)
            self._left[at] = left - done
            self.worked += done
            idle -= done


def _is_guess(at: At) -> bool:
    return at.group >= 0
