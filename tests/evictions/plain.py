"""Plain twins of the eviction rules: lists and sets, one unit at a time, no numpy. They say what docs/evictions/ says."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np


class Ranked:
    """Rules that are a number for each unit; the lowest leaves, among equals the higher index."""

    def __init__(self, rule, units, capacity, masks, **parameters):
        self.rule, self.masks, self.parameters = rule, masks, parameters
        self.entered, self.age = {}, dict.fromkeys(range(units), 0)
        self.units, self.uses, self.last = units, {}, {}
        self.rng = np.random.default_rng(parameters.get("seed", 0))

    def warm(self, cached):
        self.entered |= dict.fromkeys(cached, -1)

    def use(self, token, mask, admitted):
        self.token = token
        self.entered |= dict.fromkeys(admitted, token)
        for unit in mask:
            self.age[unit] += 1
            self.uses[unit] = 1 if unit in admitted else self.uses.get(unit, 0) + 1
            self.last[unit] = token
        if (token + 1) % self.parameters.get("period", 32) == 0:
            self.age = {unit: count // 2 for unit, count in self.age.items()}

    def worth(self, candidates):
        if self.rule == "random":
            drawn = self.rng.random(self.units, np.float32).tolist()
            return {unit: drawn[unit] for unit in candidates}
        return {unit: self.worth_of(unit) for unit in candidates}

    def worth_of(self, unit):
        used = [token for token, mask in enumerate(self.masks) if unit in mask]
        if self.rule == "lru":
            return max((token for token in used if token <= self.token), default=-1)
        if self.rule == "lfu":
            return sum(token <= self.token for token in used)
        if self.rule == "lfu-aged":
            return self.age[unit]
        if self.rule == "lfru":
            return Fraction(self.uses.get(unit, 0), self.token - self.last.get(unit, -1) + 1)
        if self.rule == "fifo":
            return self.entered.get(unit, -1)
        if self.rule == "static":
            return -self.entered.get(unit, -1)
        return -min((token for token in used if token > self.token), default=10**9)  # belady, with bypass or without

    def stay(self, candidates, count, newcomers=()):
        worth = self.worth(candidates)
        best = sorted(candidates, key=lambda unit: (-worth[unit], unit in newcomers, unit))
        return set(best[:count])


class Clock:
    """A list, oldest first."""

    def __init__(self, units, capacity, bits=1):
        self.queue, self.chances, self.most, self.fresh = [], {}, 2**bits - 1, []

    def warm(self, cached):
        for unit in sorted(cached, reverse=True):
            self.queue.append(unit)
            self.chances[unit] = 0

    def use(self, token, mask, admitted):
        self.warm(self.fresh)
        self.fresh = admitted
        for unit in mask & set(self.queue):
            self.chances[unit] = min(self.chances[unit] + 1, self.most)

    def stay(self, candidates, count):
        candidates = set(candidates)
        while len(candidates) > count:
            unit = next(unit for unit in self.queue if unit in candidates)
            self.queue.remove(unit)
            if self.chances[unit]:
                self.chances[unit] -= 1
                self.queue.append(unit)
            else:
                candidates.remove(unit)
        return candidates


class Sieve:
    """A list, oldest first, and the unit at which the hand is, or None at the tail."""

    def __init__(self, units, capacity):
        self.queue, self.visited, self.hand, self.fresh = [], {}, None, []

    def warm(self, cached):
        for unit in sorted(cached, reverse=True):
            self.queue.append(unit)
            self.visited[unit] = False

    def use(self, token, mask, admitted):
        self.warm(self.fresh)
        self.fresh = admitted
        for unit in mask & set(self.queue):
            self.visited[unit] = True

    def stay(self, candidates, count):
        candidates = set(candidates)
        while len(candidates) > count:
            at = 0 if self.hand is None else self.queue.index(self.hand)
            unit = self.queue[at]
            self.hand = self.queue[at + 1] if at + 1 < len(self.queue) else None
            if unit not in candidates:  # this token needs it
                continue
            if self.visited[unit]:
                self.visited[unit] = False
                continue
            candidates.remove(unit)
            self.queue.remove(unit)
        return candidates


class S3Fifo:
    """Three lists, oldest first."""

    def __init__(self, units, capacity, small=0.1, ghost=0.9, threshold=2):
        self.capacity, self.target = capacity, max(1, int(capacity * small))
        self.most, self.threshold = int(capacity * ghost), threshold
        self.small, self.main, self.ghost, self.uses = [], [], [], {}
        self.full, self.fresh, self.known = False, [], set()

    def warm(self, cached):
        self.fresh = cached
        self.enter()

    def enter(self):
        for unit in sorted(self.fresh, reverse=True):
            fills = not self.full and len(self.small) >= self.target
            (self.main if unit in self.known or fills else self.small).append(unit)
            self.uses[unit] = 0
        self.fresh, self.known = [], set()

    def use(self, token, mask, admitted):
        for unit in mask & set(self.small + self.main):
            self.uses[unit] = min(self.uses[unit] + 1, 3)
        self.fresh, self.known = admitted, set(admitted) & set(self.ghost)
        self.ghost = [unit for unit in self.ghost if unit not in admitted]
        if len(self.small) + len(self.main) + len(admitted) <= self.capacity:
            self.enter()

    def stay(self, candidates, count):
        candidates, self.full = set(candidates), True
        while len(candidates) > count:
            small, main = ([unit for unit in queue if unit in candidates] for queue in (self.small, self.main))
            over = len(self.main) - (self.capacity - self.target)
            left = len(candidates) - count
            if main and (over > 0 or not small):
                for _ in range(min(left, len(main), over if small else left)):
                    candidates.remove(self.leave_main(candidates))
            else:
                for unit in small:
                    if len(candidates) == count:
                        break
                    self.small.remove(unit)
                    if self.uses[unit] >= self.threshold:
                        self.main.append(unit)
                        self.uses[unit] = 0
                    else:
                        candidates.remove(unit)
                        self.ghost = [*self.ghost, unit][-self.most :] if self.most else []
        self.enter()
        return candidates

    def leave_main(self, candidates):
        while True:
            unit = next(unit for unit in self.main if unit in candidates)
            self.main.remove(unit)
            if not self.uses[unit]:
                return unit
            self.uses[unit] -= 1
            self.main.append(unit)


class Arc:
    """Four lists, oldest first."""

    def __init__(self, units, capacity):
        self.capacity, self.target = capacity, 0.0
        self.once, self.again, self.ghost_once, self.ghost_again = [], [], [], []

    def warm(self, cached):
        self.once += sorted(cached, reverse=True)

    def use(self, token, mask, admitted):
        admitted = set(admitted)
        in_once, in_again = admitted & set(self.ghost_once), admitted & set(self.ghost_again)
        sizes = len(self.ghost_once), len(self.ghost_again)
        if in_once:
            self.target = min(self.target + len(in_once) * max(sizes[1] / sizes[0], 1.0), float(self.capacity))
        if in_again:
            self.target = max(self.target - len(in_again) * max(sizes[0] / sizes[1], 1.0), 0.0)
        self.asked_again = bool(in_again)
        hits = mask & set(self.once + self.again)
        for queue in (self.once, self.again, self.ghost_once, self.ghost_again):
            queue[:] = [unit for unit in queue if unit not in hits | admitted]
        for unit in sorted(hits | in_once | in_again, reverse=True):
            self.again.append(unit)
        self.once += sorted(admitted - in_once - in_again, reverse=True)

    def stay(self, candidates, count):
        candidates = set(candidates)
        allowed = len([unit for unit in self.once if unit in candidates]) - self.target
        give = max(0, math.ceil(allowed)) + (1 if self.asked_again and allowed == max(0, math.ceil(allowed)) else 0)
        while len(candidates) > count:
            once, again = ([unit for unit in queue if unit in candidates] for queue in (self.once, self.again))
            source, memory = (
                (self.once, self.ghost_once) if once and (give > 0 or not again) else (self.again, self.ghost_again)
            )
            give -= 1
            unit = (once if source is self.once else again)[0]
            source.remove(unit)
            memory.append(unit)
            candidates.remove(unit)
        while len(self.once) + len(self.ghost_once) > self.capacity:
            self.ghost_once.pop(0)
        while len(self.once) + len(self.ghost_once) + len(self.again) + len(self.ghost_again) > 2 * self.capacity:
            self.ghost_again.pop(0)
        return candidates


QUEUES = {"clock": Clock, "sieve": Sieve, "s3fifo": S3Fifo, "arc": Arc}
RANKED = ("lru", "lfu", "lfu-aged", "lfru", "fifo", "static", "random", "belady", "belady-bypass")


def plain_run(rule, masks, units, capacity, *, bypass=None, pinned=(), warm=(), **parameters):
    """Hits of every token, and what the cache holds after each: sets of units."""
    pinned = set(pinned)
    room = 0 if rule == "none" else min(capacity, units) - len(pinned)
    others = [mask - pinned for mask in masks]
    made = (
        QUEUES[rule](units, room, **parameters) if rule in QUEUES else Ranked(rule, units, room, others, **parameters)
    )
    bypass = rule in ("static", "belady-bypass") if bypass is None else bypass
    cached, hits, held = set(warm) - pinned, [], []
    if warm:
        made.warm(cached)
    for token, mask in enumerate(others):
        found = len(masks[token] & pinned)
        there = mask & cached
        hits.append(found + len(there))
        if room:
            new = sorted(mask - cached)
            if bypass:
                made.use(token, mask, new)
                cached = cached | mask
                if len(cached) > room:
                    cached = made.stay(cached, room, newcomers=new)
            else:
                admitted = new[: max(0, room - len(there))]
                made.use(token, mask, admitted)
                idle, count = cached - mask, max(0, room - len(mask))
                if len(idle) > count and (count or rule in QUEUES):
                    idle = made.stay(idle, count)
                cached = there | set(admitted) | (idle if len(idle) <= count else set())
        held.append(cached | pinned)
    return hits, held
