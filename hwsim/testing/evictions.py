"""The contract of eviction rules, rule by rule."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from hwsim.cache.cache import Cache
from hwsim.errors import ContractError, HwsimError
from hwsim.evictions import Admission, Eviction
from hwsim.testing.rules import at_the_ends, check_rules, make

_UNITS, _TOKENS = 40, 60
_CAPACITIES = (0, 1, _UNITS // 4, _UNITS // 2, _UNITS - 1, _UNITS)


def check_eviction(eviction: type[Eviction] | Eviction) -> list[str]:
    """Run every rule of the contract of eviction rules.

    Args:
        eviction: an instance, or a class, which is made with its defaults.

    Returns:
        The rules that were checked, in words.

    Raises:
        BrokenRuleError: a rule is broken; a `ContractError` that names the first broken rule.
    """
    instance = make(eviction, Eviction, [text for text, _ in _RULES])
    return check_rules([(text, partial(check, instance)) for text, check in _RULES])


def _masks(density: float, seed: int = 0) -> np.ndarray:
    """Masks with popular units and correlation in time, one empty and one full: bool ``[tokens, units]``."""
    rng = np.random.default_rng(seed)
    popular = rng.dirichlet(np.full(_UNITS, 0.5)) * _UNITS
    masks: np.ndarray = rng.random((_TOKENS, _UNITS)) < np.clip(density * popular, 0, 1)
    again = rng.random((_TOKENS, _UNITS)) < 0.5
    for token in range(1, _TOKENS):
        masks[token] = np.where(again[token], masks[token - 1], masks[token])
    masks[_TOKENS // 2], masks[_TOKENS // 3] = False, True
    return masks


def _start(
    eviction: Eviction, masks: np.ndarray, capacity: int, warm: np.ndarray | None = None,
    admission: Admission | None = None,
) -> Cache:  # fmt: skip
    cache = Cache(_UNITS, capacity, eviction, admission=admission, warm=warm)
    cache.start(masks.copy() if eviction.needs_future else None)
    return cache


def _serve(
    eviction: Eviction, masks: np.ndarray, capacity: int, warm: np.ndarray | None = None,
    admission: Admission | None = None,
) -> list[bytes]:  # fmt: skip
    """Content of the cache after each token; the cache itself checks shapes, numbers and counts of the rule."""
    cache, held = _start(eviction, masks, capacity, warm, admission), []
    admission = admission or eviction.admission
    for token, mask in enumerate(masks):
        try:
            before = cache.view.copy()
            _, hits = cache.step(mask)
        except HwsimError as error:
            raise ContractError(f"{error} (token {token}, a cache of {capacity} of {_UNITS} units)") from error
        after, needed = cache.view, int(mask.sum())
        lawful = bool(after.sum() <= cache.capacity and hits == (before & mask).sum())
        lawful &= not np.any(after & ~(before | mask))
        if admission == "always" and cache.capacity:
            lawful &= int((after & mask).sum()) == min(needed, cache.capacity)
        if not lawful:
            raise ContractError(f"{_name(eviction)}: leaves a cache that cannot be, at token {token}")
        held.append(after.tobytes())
    return held


def _lawful(eviction: Eviction) -> None:
    for density in (0.1, 0.4):
        for capacity in _CAPACITIES:
            _serve(eviction, _masks(density), capacity)


def _one_unit(eviction: Eviction) -> None:
    masks = np.eye(_UNITS, dtype=bool)[np.random.default_rng(3).zipf(1.3, _TOKENS) % _UNITS]
    for capacity in _CAPACITIES:
        _serve(eviction, masks, capacity)


def _untouched(eviction: Eviction) -> None:
    masks = _masks(0.3)
    future = masks.copy()
    cache = Cache(_UNITS, _UNITS // 2, eviction)
    cache.start(future if eviction.needs_future else None)
    for mask in masks:
        cache.step(mask)
    if not np.array_equal(future, masks):
        raise ContractError(f"{_name(eviction)}: changes the future that start() is told; change a copy")


def _same_twice(eviction: Eviction) -> None:
    masks = _masks(0.3)
    one, other = (_serve(eviction, masks, _UNITS // 2) for _ in range(2))
    _compare(eviction, one, other, "the same run gives another cache")


def _sequences_apart(eviction: Eviction) -> None:
    masks, other = _masks(0.3), _masks(0.3, seed=2)
    cache = _start(eviction, other, _UNITS // 2)
    for mask in other:
        cache.step(mask)
    cache.start(masks.copy() if eviction.needs_future else None)
    held = []
    for mask in masks:
        cache.step(mask)
        held.append(cache.view.tobytes())
    alone = _serve(eviction, masks, _UNITS // 2)
    _compare(eviction, alone, held, "what a cache holds depends on the sequence before")


def _caches_apart(eviction: Eviction) -> None:
    masks, others = _masks(0.3), _masks(0.3, seed=2)
    cache, beside = _start(eviction, masks, _UNITS // 2), _start(eviction, others, _UNITS // 3)
    held = []
    for mask, other in zip(masks, others, strict=True):
        cache.step(mask)
        beside.step(other)
        held.append(cache.view.tobytes())
    alone = _serve(eviction, masks, _UNITS // 2)
    _compare(eviction, alone, held, "what a cache holds depends on what another one serves")


def _warm(eviction: Eviction) -> str | None:
    if not eviction.caches:
        return "it keeps nothing, so no cache can be warm"
    for count in (1, _UNITS // 4, _UNITS // 2):
        warm = np.arange(_UNITS)[::-1] < count
        _serve(eviction, _masks(0.3), _UNITS // 2, warm)
    return None


def _either_admission(eviction: Eviction) -> str | None:
    if type(eviction).stay is not Eviction.stay:
        return f"it decides who stays by itself, so its admission is always {eviction.admission}"
    choices: tuple[Admission, ...] = ("always", "bypass")
    for admission in choices:
        for capacity in _CAPACITIES:
            _serve(eviction, _masks(0.3), capacity, admission=admission)
    return None


def _compare(eviction: Eviction, one: list[bytes], other: list[bytes], what: str) -> None:
    if one != other:
        token = next(token for token, held in enumerate(one) if held != other[token])
        raise ContractError(
            f"{_name(eviction)}: {what}, first at token {token}; keep counters in the state that start() returns, and "
            "draw from a generator that start() seeds"
        )


def _name(eviction: Eviction) -> str:
    return type(eviction).__name__


def _bounds(eviction: Eviction) -> str | None:
    return at_the_ends(eviction, _lawful)


_RULES: list[tuple[str, Callable[[Eviction], str | None]]] = [
    ("in caches of every size, and for masks larger than they are, exactly as many stay as there is room for", _lawful),
    ("masks of one unit are served, too", _one_unit),
    ("what it is shown it leaves as it is", _untouched),
    ("the same run gives the same cache", _same_twice),
    ("every sequence begins anew", _sequences_apart),
    ("caches do not influence each other", _caches_apart),
    ("it can start with units in the cache", _warm),
    ("it ranks newcomers, too, so it can bypass", _either_admission),
    ("at the ends of its parameters' bounds it works, or gives a reason", _bounds),
]
