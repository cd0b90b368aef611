"""DIP inside of experts, against a plain computation by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwsim.errors import ContractError, HwsimError
from hwsim.memory.planning import plan_layers
from hwsim.model.shape import Bits
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count, replay
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_SPARSE_MODEL
from hwsim.trace import Sequence, Trace
from tests.conftest import flat_profile
from tests.sparse import INSIDE, write_sparse

_MODEL = SMALL_SPARSE_MODEL
_SEQUENCES = [Sequence(tokens=14, prompt=4), Sequence(tokens=8)]
_UNITS = {"input": 24 * 48, "down": 24 * 20}


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sparse trace with the insides of the chosen experts."""
    return write_sparse(tmp_path_factory.mktemp("within") / "t.npz", _SEQUENCES, INSIDE)


def _top(values: np.ndarray, share: float) -> set[int]:
    count = max(1, int(share * len(values) + 1e-9))
    return set(np.argsort(-np.abs(values), kind="stable")[:count].tolist())


def _masks(trace: Trace, layer: int, row: int) -> dict[str, set[int]]:
    """The units of both groups, by hand."""
    keep_input, keep_down = POLICIES.find("dip-experts")[1]().keeps(_MODEL)  # type: ignore[attr-defined]
    chosen = [int(expert) for expert in trace.read(layer, "experts", row, row + 1)[0] if expert >= 0]
    glu = trace.read(layer, "expert_glu", row, row + 1).reshape(4, 20)
    columns = _top(trace.read(layer, "expert_input", row, row + 1)[0], keep_input)
    return {
        "input": {48 * expert + column for expert in chosen for column in columns},
        "down": {20 * e + column for rank, e in enumerate(chosen) for column in _top(glu[rank], keep_down)},
    }


def _whole(trace: Trace, layer: int, rows: range) -> dict[str, set[int]]:
    """What a prompt reads: all of its experts."""
    chosen = {int(e) for e in trace.read(layer, "experts", rows.start, rows.stop).ravel() if e >= 0}
    return {name: {e * (units // 24) + i for e in chosen for i in range(units // 24)} for name, units in _UNITS.items()}


def _run(opened: Trace, policy: str = "dip-experts", eviction: str = "lru", **settings: object):  # type: ignore[no-untyped-def]
    conditions = Conditions(flat_profile(), EVICTIONS.make(eviction)[1], Settings(**settings), eviction)
    return conditions.run(Source.of_trace(opened), POLICIES.make(policy)[1], policy)


@pytest.mark.parametrize("prefill", ["dense", "cached"])
def test_columns_of_the_chosen_experts_are_read(trace: Path, prefill: str) -> None:
    with Trace(trace) as opened:
        run = _run(opened, cache=10**9, prefill=prefill)  # everything stays: hits are what was needed before
        counts = count(run)
        for layer in (0, 2):
            seen: dict[str, set[int]] = {}
            token = 0
            for start, sequence in ((0, _SEQUENCES[0]), (14, _SEQUENCES[1])):
                seen = {"input": set(), "down": set()}
                if prefill == "cached" and sequence.prompt:
                    seen = _whole(opened, layer, range(start, start + sequence.prompt))
                for row in range(start + sequence.prompt, start + sequence.tokens):
                    for slot, (name, units) in enumerate(_masks(opened, layer, row).items()):
                        assert counts.requests[token, layer, slot] == len(units)
                        assert counts.hits[token, layer, slot] == len(units & seen[name])
                        seen[name] |= units
                    token += 1
        assert [plan.name for plan in run.placement.plans[0]] == ["input", "down"]
        assert run.placement.plans[1] == ()


def test_all_of_each_chosen_expert_are_the_bytes_of_the_router(trace: Path) -> None:
    with Trace(trace) as opened:
        bits = Bits(mlp=8)
        whole = replay(_run(opened, "router", cache=0, bits=bits, prefill="dense"))
        conditions = Conditions(flat_profile(), EVICTIONS.make("lru")[1], Settings(cache=0, bits=bits, prefill="dense"))
        policy = POLICIES.make("dip-experts", {"density": 1})[1]
        parts = replay(conditions.run(Source.of_trace(opened), policy))
        assert parts.flash_bytes == whole.flash_bytes
        assert parts.mlp_density == pytest.approx(whole.mlp_density)
        half = replay(_run(opened, cache=0, bits=bits, prefill="dense"))
        assert half.mlp_density < whole.mlp_density


@pytest.mark.parametrize("eviction", ["lfu", "belady", "random"])
@pytest.mark.parametrize("options", [{"lockstep": 2}, {"speculate": 2, "accept": 0.5}, {"keep_cache": True}])
def test_steps_of_several_members_unite_them(trace: Path, eviction: str, options: dict[str, object]) -> None:
    with Trace(trace) as opened:
        run = _run(opened, eviction=eviction, cache=20_000, **options)
        counts, steps = count(run), run.steps.part(~run.steps.prompts)
        for step in range(len(steps)):
            rows = steps.rows[steps.members(step)].tolist()
            for slot, name in enumerate(_UNITS):
                members = [_masks(opened, 2, row)[name] for row in rows]
                assert counts.requests[step, 2, slot] == len(set().union(*members))
                if counts.used is not None:
                    assert counts.used[step, 2, slot] == sum(map(len, members))


class _Odd(Policy):
    """A policy whose groups a test sets."""

    listed: list[Group]

    def groups(self, model: object) -> list[Group]:
        return self.listed


def _choice(slices: tuple[str, ...] = ()) -> Group:
    return Group("experts", axis="expert", slices=list(slices), needs=["experts"])


def _inner(**fields: object) -> Group:
    given = {"name": "down", "axis": "neuron", "slices": ["expert_down.column"], "keep": 0.5, "needs": ["expert_glu"]}
    return Group(**given | {"within": "experts"} | fields)  # type: ignore[arg-type]


_INPUT = _inner(name="in", axis="hidden", slices=["expert_gate.column", "expert_up.column"], needs=["expert_input"])


@pytest.mark.parametrize(
    ("groups", "words"),
    [
        ([_choice(), _inner()], "no group within it says what is read of expert_gate"),
        ([_choice(("experts.expert",)), _inner(), _INPUT], "reads whole experts; give it no slices"),
        ([_choice(), _inner(within="others"), _INPUT], "no group of experts has this name"),
        ([_choice(), _inner(axis="kv"), _INPUT], "within experts it must be one of hidden, neuron"),
        ([_choice(), _inner(keep=None), _INPUT], "names no keep"),
        ([_choice(), _inner(slices=["down.column"]), _INPUT], "must be one of expert_gate.row"),
        ([_choice()], "no group within it says what is read of expert_gate"),
    ],
)
def test_impossible_groups_are_refused_in_one_line(groups: list[Group], words: str) -> None:
    with pytest.raises(ContractError, match=words):
        plan_layers([groups], _MODEL)


def test_shared_scopes_and_blocks_are_refused_or_work(trace: Path) -> None:
    with Trace(trace) as opened:
        assert replay(_run(opened, cache=20_000, cache_scope="global")).unit_hits > 0
        with pytest.raises(HwsimError, match="--block"):
            _run(opened, block=2)
