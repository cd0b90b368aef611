"""What must be known of masks and caches besides counts: how misses lie in Flash, and what a guess would have read."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from hwsim.errors import ContractError, HwsimError, one_line
from hwsim.memory.groups import GroupPlan
from hwsim.prefetch import Ahead, Prefetch
from hwsim.timing.reads import Reader

_TOGETHER = 16  # tokens in a row whose reads are counted at once


class Signals(Protocol):
    """Gives signals, and says which it has."""

    def read(self, layer: int, signal: str, start: int, stop: int) -> np.ndarray:
        """float32 ``[stop - start, width]``."""

    def has(self, signal: str) -> bool:
        """Whether it has a signal."""


@dataclass
class Watching:
    """What a run wants to know.

    Attributes:
        readers: of each group; empty: units are read one by one.
        prefetch: guesses masks; None: nothing is read ahead.
        source: signals for the guesses; None: there are none.
        starts: decoded tokens at which a sequence begins.
        rows: int64 ``[tokens]``: where each decoded token lies in the source.
    """

    readers: list[Reader]
    prefetch: Prefetch | None = None
    source: Signals | None = None
    starts: frozenset[int] = frozenset({0})
    rows: np.ndarray | None = None


@dataclass
class Seen:
    """What was seen, all int64 ``[tokens, layers, groups]``.

    Attributes:
        watching: what is looked at.
        plans: the groups.
        counted: reads of Flash, and their bytes; None: units are read one by one.
        ahead: units that the guess holds and the cache does not, and `useful`: those of them that are needed.
    """

    watching: Watching
    plans: tuple[GroupPlan, ...]
    counted: tuple[np.ndarray, np.ndarray] | None = None
    ahead: np.ndarray | None = None
    useful: np.ndarray | None = None
    _last: dict[tuple[int, int], np.ndarray] = field(default_factory=dict)
    # misses of tokens in a row, and the first of them: of few tokens, the cost of counting them would be that of calls
    _waiting: dict[tuple[int, int], tuple[int, list[np.ndarray]]] = field(default_factory=dict)

    @classmethod
    def nothing(cls, tokens: int, layers: int, plans: tuple[GroupPlan, ...], watching: Watching) -> Seen:
        """Nothing seen yet."""
        shape = (tokens, layers, len(plans))

        def room(wanted: Any) -> np.ndarray | None:
            return np.zeros(shape, np.int64) if wanted else None

        counted = (np.zeros(shape, np.int64), np.zeros(shape, np.int64)) if watching.readers else None
        ahead = watching.prefetch is not None
        return cls(watching, plans, counted, room(ahead), room(ahead))

    def part(self, rows: slice) -> Seen:
        """What was seen of some tokens in a row; nothing more may be looked at."""
        self._count_all()

        def cut(each: np.ndarray | None) -> np.ndarray | None:
            return None if each is None else each[rows]

        counted = None if self.counted is None else (self.counted[0][rows], self.counted[1][rows])
        return Seen(self.watching, self.plans, counted, cut(self.ahead), cut(self.useful))

    @property
    def reads(self) -> np.ndarray | None:
        """How many reads of Flash; None: units are read one by one."""
        self._count_all()
        return None if self.counted is None else self.counted[0]

    @property
    def read_bytes(self) -> np.ndarray | None:
        """Bytes of the reads."""
        self._count_all()
        return None if self.counted is None else self.counted[1]

    def see(self, row: int, layer: int, index: int, masks: np.ndarray, cached: np.ndarray) -> None:
        """Some tokens in a row asked one cache: masks and what was there before each, bool ``[tokens, units]``."""
        misses = masks & ~cached
        rows = slice(row, row + len(masks))
        if self.counted is not None:
            first, waiting = self._waiting.get((layer, index), (row, []))
            if row != first + sum(map(len, waiting)):  # elsewhere: what waits is a block of its own
                self._count(layer, index)
                first, waiting = row, []
            waiting.append(misses)
            self._waiting[layer, index] = first, waiting
            if row + len(masks) - first >= _TOGETHER:
                self._count(layer, index)
        if self.ahead is not None and self.useful is not None:
            guessed = self._guess(row, layer, index, masks) & ~cached
            self.ahead[rows, layer, index] = np.count_nonzero(guessed, axis=1)
            self.useful[rows, layer, index] = np.count_nonzero(guessed & misses, axis=1)

    def _count(self, layer: int, index: int) -> None:
        first, waiting = self._waiting.pop((layer, index))
        misses = np.concatenate(waiting)
        assert self.counted is not None
        for kept, found in zip(self.counted, self.watching.readers[index].count(misses, layer), strict=True):
            kept[first : first + len(misses), layer, index] = found

    def _count_all(self) -> None:
        for layer, index in list(self._waiting):
            self._count(layer, index)

    def _guess(self, row: int, layer: int, index: int, masks: np.ndarray) -> np.ndarray:
        watching, plan = self.watching, self.plans[index]
        rule = watching.prefetch
        assert rule is not None
        before = self._last.get((layer, index))
        last = np.zeros_like(masks)
        last[1:] = masks[:-1]
        if before is not None and row not in watching.starts:
            last[0] = before
        self._last[layer, index] = masks[-1].copy()
        signals = {}
        if layer and watching.source is not None and watching.rows is not None:
            at = int(watching.rows[row])
            for name in rule.signals:
                if watching.source.has(name):
                    signals[name] = watching.source.read(layer - 1, name, at, at + len(masks))
        truth = masks if rule.oracle else None
        ahead = Ahead(layer, plan.group.name, plan.units, last, signals, tuple(plan.group.needs), truth)
        who = f"prefetch {type(rule).__name__}"
        try:
            guessed = rule.guess(ahead)
        except HwsimError:
            raise
        except (Exception, SystemExit) as error:
            raise ContractError(f"{who}: raised {type(error).__name__}: {one_line(error)}") from error
        if not isinstance(guessed, np.ndarray) or guessed.dtype != bool or guessed.shape != masks.shape:
            raise ContractError(f"{who}: guess() must return bool {masks.shape}")
        return guessed
