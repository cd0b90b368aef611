"""The queue rules as their papers write them, for one request at a time: what they must be on masks of one unit."""

from __future__ import annotations

from collections import OrderedDict


class Clock:
    """FIFO with a second chance."""

    def __init__(self, capacity):
        self.capacity, self.queue = capacity, OrderedDict()

    def get(self, unit):
        if unit in self.queue:
            self.queue[unit] = True
            return True
        if len(self.queue) == self.capacity:
            while True:
                oldest, referenced = self.queue.popitem(last=False)
                if not referenced:
                    break
                self.queue[oldest] = False
        self.queue[unit] = False
        return False


class Sieve:
    """Zhang et al. 2024, algorithm 1."""

    def __init__(self, capacity):
        self.capacity, self.queue, self.visited, self.hand = capacity, [], {}, None  # the tail is queue[0]

    def get(self, unit):
        if unit in self.visited:
            self.visited[unit] = True
            return True
        if len(self.queue) == self.capacity:
            at = 0 if self.hand is None else self.queue.index(self.hand)
            while self.visited[self.queue[at]]:
                self.visited[self.queue[at]] = False
                at = (at + 1) % len(self.queue)
            self.hand = self.queue[at + 1] if at + 1 < len(self.queue) else None
            del self.visited[self.queue.pop(at)]
        self.queue.append(unit)
        self.visited[unit] = False
        return False


class S3Fifo:
    """Yang et al. 2023, algorithm 1, with the small queue's overflow into the main one while the cache fills."""

    def __init__(self, capacity):
        self.capacity, self.target, self.most = capacity, max(1, int(capacity * 0.1)), int(capacity * 0.9)
        self.small, self.main, self.ghost, self.full = OrderedDict(), OrderedDict(), OrderedDict(), False

    def get(self, unit):
        for queue in (self.small, self.main):
            if unit in queue:
                queue[unit] = min(queue[unit] + 1, 3)
                return True
        known = self.ghost.pop(unit, None) is not None
        while len(self.small) + len(self.main) == self.capacity:
            self.full = True
            if len(self.main) > self.capacity - self.target or not self.small:
                self.leave_main()
            else:
                self.leave_small()
        fills = not self.full and len(self.small) >= self.target
        (self.main if known or fills else self.small)[unit] = 0
        return False

    def leave_small(self):
        while self.small:
            unit, uses = self.small.popitem(last=False)
            if uses < 2:
                self.ghost[unit] = True
                if len(self.ghost) > self.most:
                    self.ghost.popitem(last=False)
                return
            self.main[unit] = 0

    def leave_main(self):
        while self.main:
            unit, uses = self.main.popitem(last=False)
            if not uses:
                return
            self.main[unit] = uses - 1


class Arc:
    """Megiddo and Modha 2003, figure 4."""

    def __init__(self, capacity):
        self.c, self.p = capacity, 0.0
        self.t1, self.t2, self.b1, self.b2 = (OrderedDict() for _ in range(4))

    def replace(self, in_b2):
        if self.t1 and (len(self.t1) > self.p or (in_b2 and len(self.t1) == self.p)):
            self.b1[self.t1.popitem(last=False)[0]] = True
        else:
            self.b2[self.t2.popitem(last=False)[0]] = True

    def get(self, unit):
        for queue in (self.t1, self.t2):
            if unit in queue:
                del queue[unit]
                self.t2[unit] = True
                return True
        if unit in self.b1:
            self.p = min(self.c, self.p + max(len(self.b2) / len(self.b1), 1))
            self.replace(False)
            del self.b1[unit]
            self.t2[unit] = True
        elif unit in self.b2:
            self.p = max(0, self.p - max(len(self.b1) / len(self.b2), 1))
            self.replace(True)
            del self.b2[unit]
            self.t2[unit] = True
        else:
            if len(self.t1) + len(self.b1) == self.c:
                if len(self.t1) < self.c:
                    self.b1.popitem(last=False)
                    self.replace(False)
                else:
                    self.t1.popitem(last=False)
            elif (total := len(self.t1) + len(self.t2) + len(self.b1) + len(self.b2)) >= self.c:
                if total == 2 * self.c:
                    self.b2.popitem(last=False)
                self.replace(False)
            self.t1[unit] = True
        return False


TEXTBOOK = {"clock": Clock, "sieve": Sieve, "s3fifo": S3Fifo, "arc": Arc}
