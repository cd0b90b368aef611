"""Fifty replays at once through the Python interface, in threads and in processes, give what one alone gives."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

import hwsim
from hwsim.trace import Sequence
from tests.conftest import write_trace

MANY = 50
KINDS = [("dip-ca", "lfu"), ("dip", "lru"), ("dip-ca", "fifo"), ("random", "random")]


def one(trace: Path, number: int) -> str:
    policy, eviction = KINDS[number % len(KINDS)]
    result = hwsim.replay(trace, "pixel8", policy, density=0.5, dram="50%", eviction=eviction)
    return str(result.to_json())


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two sequences, each long enough that threads take turns within it."""
    sequences = [Sequence(tokens=120, prompt=10), Sequence(tokens=60)]
    return write_trace(tmp_path_factory.mktemp("many") / "t.npz", sequences=sequences)


@pytest.fixture(scope="module")
def alone(trace: Path) -> list[str]:
    return [one(trace, number) for number in range(len(KINDS))]


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_many_at_once(kind: str, trace: Path, alone: list[str]) -> None:
    if kind == "threads":
        pool = ThreadPoolExecutor(MANY)
    else:
        pool = ProcessPoolExecutor(4, multiprocessing.get_context("spawn"))
    with pool:
        results = list(pool.map(partial(one, trace), range(MANY)))
    assert len(set(alone)) == len(KINDS)
    assert results == [alone[number % len(KINDS)] for number in range(MANY)]
