"""Options of steps and of caches of experts: what is refused, in one line, and what a reader is told."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwsim.errors import HwsimError
from hwsim.masking.mask_file import MaskFile
from hwsim.policy import Context, Group, ModelShape, Policy
from hwsim.simulation.metrics import Result
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_SPARSE_MODEL, RandomSignals
from hwsim.trace import Sequence, Trace, TraceHeader, TraceWriter
from tests.conftest import flat_profile
from tests.runs import replay, run_of
from tests.simulation.routes import Routed, write

_MODEL = SMALL_SPARSE_MODEL  # two layers of 24 experts, 4 in use, 1,440 B each, and a dense layer between them
_EXPERT = 1440
_SIGNALS = ["router", "experts", "expert_weights", "input", "up", "gate"]
_SEQUENCES = [Sequence(tokens=14, prompt=4), Sequence(tokens=8)]


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trace]:
    """A trace with flags of a device, of a model with sparse layers and a dense one."""
    path = tmp_path_factory.mktemp("mixed") / "t.npz"
    header = TraceHeader(origin="synthetic", model=_MODEL, signals=_SIGNALS, sequences=_SEQUENCES)
    source = RandomSignals(_MODEL, header.tokens)
    with TraceWriter(path, header, residency=True) as writer:
        for layer in range(_MODEL.num_hidden_layers):
            for signal in _SIGNALS:
                if _MODEL.signal_width(signal, layer):
                    writer.write(layer, signal, 0, source.read(layer, signal))
            if _MODEL.signal_width("experts", layer):
                writer.write_residency(layer, 0, np.zeros((header.tokens, 4), bool))
        writer.commit(header.tokens)
        writer.finish()
    with Trace(path) as opened:
        yield opened


class Both(Policy):
    """The router's experts, and half of the neurons of dense layers."""

    def groups(self, model: ModelShape) -> list[Group]:
        return [
            Group("experts", axis="expert", slices=["experts.expert"], needs=["experts"]),
            Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"]),
        ]

    def select(self, ctx: Context) -> np.ndarray | None:
        if ctx.group.name == "down":
            return None
        mask = np.zeros(ctx.units, bool)
        mask[ctx.signals["experts"]] = True
        return mask

    def score(self, ctx: Context) -> np.ndarray:
        return np.asarray(np.abs(ctx.signals["glu"]))


def _replay(trace: Trace, policy: Policy | str = "router", rule: str = "lru", **options: Any) -> Result:
    made = POLICIES.make(policy)[1] if isinstance(policy, str) else policy
    return replay(trace, flat_profile(), made, EVICTIONS.make(rule)[1], Settings(**options), policy_name="mine")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"block": 2}, "which --block makes no larger ones; leave it out"),
        ({"merge": "256KiB"}, "prompts go through the caches; give --prefill dense"),
        ({"cache": "1kB", "dram": "1kB"}, "--cache and --dram"),
        ({"speculate": 1}, "say how many drafts are accepted"),
        ({"accept": 0.5}, "say how many tokens are drafted"),
        ({"speculate": 1, "accept": 0.5, "lockstep": 2}, "--speculate and --lockstep"),
        ({"speculate": 1, "accept": 1.5}, "from 0 to 1, or trace"),
        ({"speculate": 1, "accept": "often"}, "from 0 to 1, or trace"),
        ({"speculate": 1, "accept": "trace"}, "does not say which drafts are right"),
        ({"lockstep": 0}, "a whole number from 1"),
        ({"lockstep": True}, "a whole number from 1"),
        ({"prefill": "half"}, "one of dense, cached"),
        ({"cache": "50%"}, "'%' is not a unit"),
        ({"cache_scope": "global", "rule": "arc"}, "must be compared by a rank alone"),
        ({"cache_scope": "global", "policy": Both()}, "admits whole events and serves no other units"),
        ({"policy": "drop-cold", "rule": "belady"}, "belady must know all masks beforehand"),
        ({"policy": "drop-cold", "rule": "belady", "cache_scope": "global"}, "belady must know all masks beforehand"),
        ({"policy": "dip"}, "choose a policy for experts"),
        ({"admission": "bypass", "rule": "arc"}, "ranks no newcomer among experts"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(mixed: Trace, options: dict[str, Any], words: str) -> None:
    with pytest.raises(HwsimError) as caught:
        _replay(mixed, **options)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("several", [{"lockstep": 2}, {"speculate": 1, "accept": 1}])
def test_prefetch_guesses_single_tokens_only(mixed: Trace, several: dict[str, Any]) -> None:
    with pytest.raises(HwsimError, match="a rule predicts one token at a time"):
        _replay(mixed, overlap="prefetch", prefetch="oracle", **several)


def test_masks_of_experts_are_not_replayed(mixed: Trace) -> None:
    run = run_of(mixed, flat_profile(), POLICIES.make("router")[1], EVICTIONS.make("lru")[1], Settings(cache=10**4))
    saved = replace(run.source, trace=None, masks=MaskFile.__new__(MaskFile))
    with pytest.raises(HwsimError, match="not the order of their use"):
        replace(run, source=saved)


@pytest.mark.parametrize("several", [{"lockstep": 2}, {"speculate": 2, "accept": 0.5}, {}])
@pytest.mark.parametrize("reads", [{"merge": "256KiB"}, {"packed": True}, {"bundle": True}, {"fills": True}])
@pytest.mark.parametrize("overlap", ["none", "group", "pipeline"])
def test_all_ways_of_reading_serve_steps(
    mixed: Trace, several: dict[str, Any], reads: dict[str, Any], overlap: str
) -> None:
    plain = _replay(mixed, Both(), cache=30_000, prefill="dense", **several)
    result = _replay(mixed, Both(), cache=30_000, prefill="dense", overlap=overlap, **several, **reads)
    assert result.flash_bytes == plain.flash_bytes
    assert result.unit_hits == plain.unit_hits
    assert (overlap == "none") <= (result.time_s.total >= plain.time_s.total * (1 - 1e-9))


def test_flags_are_compared_where_layers_have_other_groups_too(mixed: Trace) -> None:
    result = _replay(mixed, Both(), cache=30_000, prefill="dense")
    assert result.device_flags is not None
    experts = [group for group in result.groups if group.group == "experts"]
    # no expert was cached on the device, so each hit is a difference
    assert result.device_flags.rows == sum(group.requests for group in experts)
    assert result.device_flags.agree == sum(group.requests - group.hits for group in experts)
    (note,) = [note for note in result.notes if "cache flags" in note]
    assert f"{result.device_flags.agree:,} of the {result.device_flags.rows:,} cache flags" in note


def test_blocks_of_signals_of_ended_sequences_are_dropped(mixed: Trace, monkeypatch: pytest.MonkeyPatch) -> None:
    from hwsim.masking import choosers

    most: list[int] = []
    demand = choosers.Chooser.demand

    def counted(self: Any, step: int) -> Any:
        answer = demand(self, step)
        most.append(len(self._blocks))
        return answer

    monkeypatch.setattr(choosers.Chooser, "demand", counted)
    _replay(mixed, cache=30_000, keep_cache=True)
    assert max(most) <= 2


def _notes(result: Result) -> str:
    return "\n".join(result.notes)


def test_a_global_cache_below_one_token_s_demand_is_warned_of_with_both_numbers(mixed: Trace) -> None:
    for rule in ("lru", "fifo"):
        small = _replay(mixed, rule=rule, cache="3kB", cache_scope="global")
        assert "the cache of 3.00 kB is smaller than what one token needs of the experts, 1" in _notes(small)
        assert "finds nothing" in _notes(small)
        assert small.hit_rate == 0
        assert "smaller than" not in _notes(_replay(mixed, rule=rule, cache="14kB", cache_scope="global"))
    assert "Layers take turns" not in _notes(_replay(mixed, rule="lfu", cache="3kB", cache_scope="global"))
    together = _replay(mixed, cache="3kB", cache_scope="global", lockstep=2)
    assert "smaller than what one step needs" in _notes(together)


def test_caches_of_layers_below_a_token_s_demand_are_warned_of(mixed: Trace) -> None:
    small = _replay(mixed, cache=2 * 2 * _EXPERT, cache_scope="layer")
    assert "the caches of 2 of 2 layers hold fewer experts (2) than a token uses there" in _notes(small)
    assert "holds no unit" not in _notes(_replay(mixed, cache=10, cache_scope="layer"))
    assert _replay(mixed, cache=10, cache_scope="layer").unit_hits > 0  # what an event needed stays
    nothing = _replay(mixed, cache=10)
    assert "holds no unit" in _notes(nothing)
    assert "stays until" not in _notes(nothing)
    assert nothing.unit_hits == 0
    assert "stays until" not in _notes(_replay(mixed, cache=0, cache_scope="layer"))
    assert "fewer experts" not in _notes(_replay(mixed, cache=2 * 5 * _EXPERT, cache_scope="layer"))


def test_what_a_table_does_not_say_is_said_in_notes(mixed: Trace, tmp_path: Path) -> None:
    result = _replay(mixed, cache=30_000, speculate=2, accept=0.5)
    assert "Making drafts costs nothing here" in _notes(result)
    assert f"{result.steps} steps decode 18 tokens; latencies are those of steps." in _notes(result)
    assert result.prompt is not None
    assert f"prompts went through the caches and hit {result.prompt.hit_rate:.1%}" in _notes(result)
    assert "prompts went" not in _notes(_replay(mixed, cache=30_000, prefill="dense"))
    more = _replay(mixed, cache="2GB")
    assert "--cache 2.00 GB and" in _notes(more)
    assert "are more than the device's DRAM budget of 1.00 GB" in _notes(more)
    assert "Give less with --cache" in _notes(more)
    routed = Routed(3, [5, 5], [7, 7], np.array([[[0], [1]], [[2], [0]]]), [(2, 0)])
    with Trace(write(tmp_path / "b.npz", routed)) as trace:
        by_bytes = _replay(trace, cache=10)
    assert "only bytes are known" in _notes(by_bytes)
    assert by_bytes.resident_bytes == 14
    assert by_bytes.kv_cache_bytes == 0


def test_pinned_and_warm_experts_are_hits_from_the_start(mixed: Trace) -> None:
    from hwsim.cache.unit_sets import UnitSets

    sets = {f"layers/{layer:03d}/experts": np.arange(24) < 6 for layer in (0, 2)}
    options = {"cache": 2 * 8 * _EXPERT, "prefill": "dense"}
    empty = _replay(mixed, **options)
    for rule in sorted(set(EVICTIONS.names()) - {"none"}):
        pinned = _replay(mixed, rule=rule, pin=UnitSets(sets), **options)
        run = run_of(
            mixed, flat_profile(), POLICIES.make("router")[1], EVICTIONS.make(rule)[1],
            Settings(pin=UnitSets(sets), **options),
        )  # fmt: skip
        used = np.concatenate([mixed.read(layer, "experts", 0, 22)[run.steps.rows] for layer in (0, 2)])
        chosen = np.count_nonzero((used >= 0) & (used < 6))
        assert pinned.unit_hits >= chosen
        assert count(run).hits.sum() == pinned.unit_hits
    warm = _replay(mixed, warm=UnitSets(sets), **options)
    assert warm.unit_hits > empty.unit_hits
