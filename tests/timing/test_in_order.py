"""Where nothing can interleave the clock that only adds up is SimPy's, to the bit."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.device.profile import Thermal
from hwsim.timing import in_order as inorder
from hwsim.timing.events import run_events
from hwsim.timing.times import Timing
from hwsim.timing.work import Work
from tests.timing.cli import run_cli
from tests.timing.works import uneven


@st.composite
def works(draw: Any) -> Work:
    """Seconds over many magnitudes, some zero, of any number of layers and of groups in each of them."""
    tokens, layers, groups = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    empty = draw(st.sampled_from([0.0, 0.3, 0.9]))
    each = (tokens, layers, groups)
    parts, present = uneven(rng, layers, groups)

    def seconds(*shape: int) -> np.ndarray:
        values = np.where(rng.random(shape) < empty, 0.0, 10.0 ** rng.uniform(-9, 0, shape))
        return np.where(present, values, 0.0) if shape == each else values

    return Work(
        resident=seconds(layers + 1), streamed=seconds(1, layers + 1), kv_cache=seconds(tokens, layers),
        unmasked=seconds(tokens, layers + 1), selection=seconds(*each), flash=seconds(*each), dram=seconds(*each),
        fills=np.zeros(each), on_hits=seconds(*each), on_misses=seconds(*each), parts=parts,
        starts=frozenset({0, tokens // 2}),
    )  # fmt: skip


def part(work: Work, rows: slice) -> Work:
    """The work of some of its tokens."""
    names = ("kv_cache", "unmasked", "selection", "flash", "dram", "fills", "on_hits", "on_misses")
    return replace(work, **{name: getattr(work, name)[rows] for name in names})


def plain(timing: Timing) -> dict[str, Any]:
    return asdict(timing) | {"token_s": timing.token_s.tolist()}


HEAT = st.none() | st.builds(
    lambda after, factor: Thermal.model_validate({"after": f"{after} us", "factor": factor, "source": "made up"}),
    st.floats(0.001, 1e6).map(lambda value: f"{value:.6f}"),
    st.floats(0.1, 0.9),
)


@settings(max_examples=300)
@given(work=works(), thermal=HEAT, step=st.integers(1, 60))
def test_it_is_simpy_to_the_bit(work: Work, thermal: Thermal | None, step: int) -> None:
    done: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inorder, "_BLOCK", step)
        rows = list(inorder.blocks(work.tokens, work.layers, work.groups))
    fast = inorder.run_in_order((part(work, each) for each in rows), thermal=thermal, progress=done.append)
    slow = run_events(work, overlap="none", thermal=thermal)
    assert plain(fast) == plain(slow)
    assert done == [each.stop for each in rows]


@pytest.mark.parametrize(
    "options",
    [
        ["--policy", "dense"],
        ["--policy", "dip-ca", "--packed", "--per-token"],
        ["--policy", "dip", "--merge", "64 KiB", "--gap", "auto"],
        ["--policy", "dip-ca", "--kv-window", 5, "--cache-scope", "layer"],
    ],
)
def test_a_replay_in_blocks_is_one_with_a_timeline(
    options: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A timeline wants to know of each service, so SimPy plays them."""
    monkeypatch.setattr(inorder, "_BLOCK", 3000)
    played: list[bool] = []

    def play(*arguments: Any, **options: Any) -> Timing:
        played.append(True)
        return run_events(*arguments, **options)

    monkeypatch.setattr("hwsim.timing.time_of.run_events", play)
    given = ["replay", "sample", "--hw", "oneplus15r", "--dram", "60%", *options]
    run_cli(*given, "--json", tmp_path / "fast.json")
    assert not played
    run_cli(*given, "--json", tmp_path / "slow.json", "--timeline", tmp_path / "timeline.json")
    assert played
    assert (tmp_path / "fast.json").read_text() == (tmp_path / "slow.json").read_text()
