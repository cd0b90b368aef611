"""Timeline of the devices in the Chrome trace-event format, which ui.perfetto.dev and chrome://tracing open.

Format: "Trace Event Format", Google 2016. Times are microseconds. There is one process with a thread each for decoder,
Flash, DRAM and compute, whose work is complete events ("X"). Reads ahead are asynchronous events ("b", "e"), as they
are done in idle time. Hit rate, cache and queue depth are counters ("C").
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.errors import SettingError
from hwsim.timing.moments import Beginning, MomentObserver
from hwsim.util.files import write_atomic

_TRACKS = {"decoder": 1, "flash": 2, "dram": 3, "compute": 4}
_NAMES = {"decoder": "decoder", "flash": "Flash", "dram": "DRAM", "compute": "compute"}
_WORDS = {"resident": "weights", "streamed": "streamed weights", "compute": "arithmetic"}
_PROCESS = 1


class Timeline(MomentObserver):
    """Collects the slices of a range of tokens.

    Args:
        tokens: first decoded token that is shown, and the end of the range (not included).
    """

    def __init__(self, tokens: tuple[int, int]) -> None:
        self._tokens = range(*tokens)
        self._events: list[dict[str, Any]] = []
        self._numbers: dict[str, np.ndarray] = {}
        self._groups: list[list[str]] = []
        self._head = -1
        self._depth = 0
        self._about: dict[str, Any] = {}
        self._ids = 0

    def begin(self, beginning: Beginning) -> None:
        """Take what names and numbers the slices of a decode that begins need.

        Raises:
            SettingError: the range begins after the last decoded token.
        """
        decode, caches = beginning.decode, beginning.caches
        counts, placement, plans = decode.counts, decode.placement, decode.placement.plans
        if self._tokens.start >= counts.tokens:
            raise SettingError(
                f"--timeline-tokens {self._tokens.start}:{self._tokens.stop}: there are {counts.tokens} "
                "decoded tokens, the first is 0"
            )
        self._groups = [[plan.name for plan in layer] for layer in plans.by_layer]
        self._head = placement.layers
        self._numbers = {
            "requests": counts.requests,
            "hits": counts.hits,
            "flash_bytes": counts.miss_bytes(plans),
            "dram_bytes": counts.hit_bytes(plans),
            "reads": counts.misses * plans.table(lambda plan: len(decode.setup.slices(plan)[0])),
        }
        if decode.reads is not None:
            self._numbers["reads"] = decode.reads.reads
        self._depth = decode.device.flash.queue_depth or 0
        self._about = beginning.about
        if plans and placement.shared is None and caches.pinned is None and caches.warm is None:
            room = plans.table(lambda plan: plan.capacity)
            self._occupied = _occupancy(
                counts.misses, room, self._tokens.stop, frozenset(np.flatnonzero(decode.steps.starts).tolist())
            )
            self._unit_bytes = plans.table(lambda plan: plan.unit_bytes)

    _occupied: np.ndarray | None = None
    _unit_bytes: np.ndarray

    def slice(self, track: str, what: str, at: tuple[int, int, int], start: float, seconds: float) -> None:
        """Add a slice: work of a device, or a token or layer of the decoder."""
        token, layer, group = at
        if token not in self._tokens:
            return
        where: dict[str, Any] = {"token": token}
        if layer >= 0:
            where["layer"] = "LM head" if layer == self._head else layer
        if group >= 0:
            where["group"] = self._groups[layer][group]
            numbers = {key: int(values[token, layer, group]) for key, values in self._numbers.items()}
            wanted = {
                "flash": ("requests", "hits", "flash_bytes", "reads"),
                "dram": ("requests", "hits", "dram_bytes"),
            }
            where |= {key: numbers[key] for key in wanted.get(track, ("requests", "hits"))}
        self._events.append({
            "name": self._name(track, what, token, layer, group), "cat": what, "ph": "X", "pid": _PROCESS,
            "tid": _TRACKS[track], "ts": start * 1e6, "dur": seconds * 1e6, "args": where,
        })  # fmt: skip
        if track == "flash":
            reads = where.get("reads", self._depth or 1)
            deep = min(reads, self._depth) if self._depth else reads
            self._counter("Flash queue depth", start, {"reads": deep})
            self._counter("Flash queue depth", start + seconds, {"reads": 0})
        if track == "decoder" and layer < 0:
            self._count(token, start, start + seconds)

    def ahead(self, device: str, what: str, at: tuple[int, int, int], start: float, end: float, share: float) -> None:
        """Add a read ahead in idle time between `start` and `end`, of which `share` arrived in time."""
        token, layer, group = at
        if token not in self._tokens:
            return
        self._ids += 1
        about = {"token": token, "layer": "LM head" if layer == self._head else layer, "share_in_time": share}
        if group >= 0:
            about["group"] = self._groups[layer][group]
        common = {  # one name, so that a viewer shows these events as one track
            "name": f"{_NAMES[device]} ahead: {what}", "cat": "read ahead", "id": self._ids, "pid": _PROCESS,
            "tid": _TRACKS[device], "args": about,
        }  # fmt: skip
        self._events += [common | {"ph": "b", "ts": start * 1e6}, common | {"ph": "e", "ts": end * 1e6}]

    def _name(self, track: str, what: str, token: int, layer: int, group: int) -> str:
        if track == "decoder":
            return f"token {token}" if layer < 0 else "LM head" if layer == self._head else f"layer {layer}"
        if group < 0:
            return _WORDS.get(what, what)
        kind = {"flash": "misses", "dram": "hits"}.get(track, "arithmetic")
        return f"{self._groups[layer][group]}: {kind}"

    def _counter(self, name: str, at: float, values: dict[str, float]) -> None:
        self._events.append({"name": name, "ph": "C", "pid": _PROCESS, "tid": 0, "ts": at * 1e6, "args": values})

    def _count(self, token: int, start: float, end: float) -> None:
        """Add the counters of a token: its hit rate, and the bytes in the caches at its end."""
        requests, hits = int(self._numbers["requests"][token].sum()), int(self._numbers["hits"][token].sum())
        if requests:
            self._counter("hit rate", start, {"share": hits / requests})
        if self._occupied is not None:
            self._counter("cache", end, {"bytes": int((self._occupied[token] * self._unit_bytes).sum())})

    def plain(self) -> dict[str, Any]:
        """The content of the file, events ordered by time."""
        named = [
            {"name": "thread_name", "ph": "M", "pid": _PROCESS, "tid": number, "ts": 0, "args": {"name": _NAMES[track]}}
            for track, number in _TRACKS.items()
        ]
        order = [
            {
                "name": "thread_sort_index",
                "ph": "M",
                "pid": _PROCESS,
                "tid": number,
                "ts": 0,
                "args": {"sort_index": number},
            }
            for number in _TRACKS.values()
        ]
        title = f"hwsim: {self._about.get('policy', '')} on {self._about.get('device', '')}"
        process = {"name": "process_name", "ph": "M", "pid": _PROCESS, "tid": 0, "ts": 0, "args": {"name": title}}
        # if slices begin together, the longest is first, because it contains the others
        events = sorted(self._events, key=lambda event: (event["ts"], -event.get("dur", 0.0)))
        return {"traceEvents": [process, *named, *order, *events], "displayTimeUnit": "ms", "otherData": self._about}

    def write(self, path: Path) -> None:
        """Write the timeline to a file.

        Raises:
            OutputError: the file cannot be written.
        """
        write_atomic(path, json.dumps(self.plain(), separators=(",", ":")) + "\n")


def _occupancy(misses: np.ndarray, room: np.ndarray, stop: int, starts: frozenset[int]) -> np.ndarray:
    """Units in each cache after each token before `stop`, shape (tokens, layers, groups).

    In each sequence a cache starts empty and grows by its misses until it is full.
    """
    occupied = np.zeros((min(stop, len(misses)), *room.shape), np.int64)
    now = np.zeros(room.shape, np.int64)
    for token in range(len(occupied)):
        if token in starts:
            now = np.zeros_like(now)
        now = np.minimum(room, now + misses[token])
        occupied[token] = now
    return occupied


def read_range(text: str) -> tuple[int, int]:
    """The tokens (first, end) of ``--timeline-tokens FIRST:END``.

    Raises:
        SettingError: the text has another form, or the range is empty.
    """
    first, colon, end = text.partition(":")
    try:
        tokens = (int(first or 0), int(end) if end or not colon else 2**62)
    except ValueError:
        tokens = (0, 0)
    if not colon or not 0 <= tokens[0] < tokens[1]:
        raise SettingError(f"--timeline-tokens {text}: write FIRST:END, such as 0:32; the end is not included")
    return tokens
