"""Fifty replays at once through the Python interface, in threads and in processes, give what one alone gives."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest

import hwsim

MANY = 50
KINDS = [("dip-ca", "lfu"), ("dip", "lru"), ("dip-ca", "fifo"), ("random", "random")]


def one(number: int) -> str:
    policy, eviction = KINDS[number % len(KINDS)]
    found = hwsim.replay("sample", "pixel8", policy, density=0.5, dram="50%", eviction=eviction)
    return str(found.to_json())


@pytest.fixture(scope="module")
def alone() -> list[str]:
    return [one(number) for number in range(len(KINDS))]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_many_at_once(kind: str, alone: list[str]) -> None:
    if kind == "threads":
        pool = ThreadPoolExecutor(MANY)
    else:
        pool = ProcessPoolExecutor(4, multiprocessing.get_context("spawn"))
    with pool:
        found = list(pool.map(one, range(MANY)))
    assert len(set(alone)) == len(KINDS)
    assert found == [alone[number % len(KINDS)] for number in range(MANY)]
