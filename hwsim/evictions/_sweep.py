"""The hand that goes around a queue, for a set of units at once: what CLOCK, SIEVE and S3-FIFO share.

A queue is kept as one number for each unit, its place: who has the lowest is next. Units of one mask enter from the
highest index to the lowest, so that among equals the higher index leaves first, as under every other rule.
"""

from __future__ import annotations

import numpy as np


def sweep(places: np.ndarray, chances: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Go around a queue until `count` units have left it.

    The hand meets the units by rising place, again and again: who has no chance left leaves, the others lose one.

    Args:
        places: int64 ``[queue]``, all different.
        chances: whole numbers from 0 ``[queue]``.
        count: how many leave, 1 to the length of the queue.

    Returns:
        Who leaves, bool ``[queue]``; how often the hand passed each of the others, int64 ``[queue]``; the place of
        whoever left last.
    """
    have = np.cumsum(np.bincount(chances))
    rounds = int(np.searchsorted(have, count))  # whole ones before the last
    last = chances == rounds
    still = count - (int(have[rounds - 1]) if rounds else 0)
    final = int(np.partition(places[last], still - 1)[still - 1])
    leaves = (chances < rounds) | (last & (places <= final))
    passed = np.where(leaves, 0, rounds + (places < final))
    return leaves, passed, final


def entering(units: np.ndarray, base: int, size: int) -> np.ndarray:
    """Places from `base` to below ``base + size`` for units of one mask, rising indices int64, the highest first."""
    places: np.ndarray = base + size - 1 - units
    return places
