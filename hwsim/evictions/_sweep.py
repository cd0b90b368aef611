"""The hand that goes around a queue, for a set of units at once; shared by CLOCK, SIEVE and S3-FIFO.

A queue is stored as one number for each unit, its place; the unit with the lowest place is next. Units of one mask
enter from the highest index to the lowest, so that of equal units the higher index leaves first, as in all rules.
"""

from __future__ import annotations

import numpy as np


def sweep(places: np.ndarray, chances: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, int]:
    """The units that leave when the hand goes around a queue until `count` units have left it.

    The hand meets the units by rising place, again and again. A unit without chances leaves; any other loses one.

    Args:
        places: int64 ``[queue]``, all different.
        chances: whole numbers from 0 ``[queue]``.
        count: number of units that leave, 1 to the length of the queue.

    Returns:
        Mask of the units that leave, bool ``[queue]``; how often the hand passed each of the others, int64 ``[queue]``;
        the place of the last unit to leave.
    """
    have = np.cumsum(np.bincount(chances))
    rounds = int(np.searchsorted(have, count))  # complete rounds before the last one
    last = chances == rounds
    still = count - (int(have[rounds - 1]) if rounds else 0)
    final = int(np.partition(places[last], still - 1)[still - 1])
    leaves = (chances < rounds) | (last & (places <= final))
    passed = np.where(leaves, 0, rounds + (places < final))
    return leaves, passed, final


def entering(units: np.ndarray, base: int, size: int) -> np.ndarray:
    """Places from `base` to below ``base + size`` for the units of one mask, int64; the highest index comes first."""
    places: np.ndarray = base + size - 1 - units
    return places
