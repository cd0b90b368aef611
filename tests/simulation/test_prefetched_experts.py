"""Prefetch of experts: by hand, against a plain twin, and against shares that others published."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.cache.unit_sets import write_units
from hwsim.errors import HwsimError, PluginError, SettingError
from hwsim.masking.counts import Served
from hwsim.masking.guesses import Guesses
from hwsim.masking.observers import Observer
from hwsim.memory.groups import Place
from hwsim.model.layers import Experts, LayerShape
from hwsim.model.shape import ROUTER_AHEAD, ModelShape
from hwsim.prefetch import Ahead, Prefetch
from hwsim.prefetch.hot import Hot
from hwsim.prefetch.hot_list import HotList
from hwsim.prefetch.last_token import LastToken
from hwsim.prefetch.next_router import NextRouter
from hwsim.prefetch.oracle import Oracle
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import count
from hwsim.simulation.run import Run
from hwsim.simulation.settings import Settings
from hwsim.trace import Sequence, Trace, TraceHeader, TraceWriter
from tests.conftest import flat_profile
from tests.runs import replay, run_of
from tests.simulation.routes import Routed, route_trace, write
from tests.timing.cli import run_cli

SIZE = 8192  # bytes of an expert
DEVICE = flat_profile(dram="1 MB/s", flash="1 GB/s")  # Flash waits for DRAM, so that all predictions are read in time


def opened(path: Path, chosen: Any, sequences: list[tuple[int, int]], experts: int = 4, dense: int = 65_536) -> Trace:
    chosen = np.asarray(chosen)
    layers = len(chosen)
    return Trace(write(path, Routed(experts, [SIZE] * layers, [dense] * layers, chosen, sequences)))


def made(trace: Trace, rule: Prefetch, eviction: str = "none", policy: str = "router", **options: Any) -> Run:
    options = {"cache": 10**9} | options
    chosen = Settings(overlap="prefetch", prefetch=("rule", rule), **options)
    return run_of(trace, DEVICE, POLICIES.make(policy)[1], EVICTIONS.make(eviction)[1], chosen)


def prefetched(trace: Trace, rule: Prefetch, **options: Any) -> Any:
    run = made(trace, rule, **options)
    return replay(trace, DEVICE, run.policy, run.eviction, run.settings).prefetch


def counted(trace: Trace, rule: Prefetch, **options: Any) -> Guesses:
    run = made(trace, rule, **options)
    watched = run.watched()
    count(run, watched.observers)
    assert watched.guesses is not None
    return watched.guesses


# ---------------------------------------------------------------------- by hand

# a prompt of one token, then three decoded ones
BY_HAND = [[[0, 1], [0, 2], [2, 3], [3, 1]], [[1, 0], [1, 0], [1, 0], [2, 3]]]


def test_what_the_token_before_predicts(tmp_path: Path) -> None:
    """Of six predicted experts in layer 0 three are needed, of six in layer 1 four; nothing is ever cached.

    The first layer of the first token cannot be read ahead, as nothing runs before it: ten experts are read, of which
    two are wrong in layer 0 and two in layer 1.
    """
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace:
        guesses = counted(trace, LastToken())
        assert guesses.ahead[:, :, 0].tolist() == [[2, 2], [2, 2], [2, 2]]
        assert guesses.useful[:, :, 0].tolist() == [[1, 2], [1, 2], [1, 0]]
        found = prefetched(trace, LastToken())
        assert (found.precision, found.recall) == (7 / 12, 7 / 12)
        assert (found.read_bytes, found.wasted_bytes) == (10 * SIZE, 4 * SIZE)


def test_what_is_cached_is_not_predicted(tmp_path: Path) -> None:
    """With room for all, the token before predicts nothing that is not cached; the most used ones neither."""
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace:
        for rule in (LastToken(), Hot()):
            guesses = counted(trace, rule, eviction="lru", cache_scope="global")
            assert not guesses.ahead.any()
        guesses = counted(trace, Oracle(), eviction="lru", cache_scope="global")
        assert guesses.ahead[:, :, 0].tolist() == [[1, 0], [1, 0], [0, 2]]


def test_k_takes_the_largest_weights(tmp_path: Path) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace:
        guesses = counted(trace, LastToken(k=1))  # 0, 0, 2 and 1, 1, 1
        assert guesses.ahead[:, :, 0].tolist() == [[1, 1], [1, 1], [1, 1]]
        assert guesses.useful[:, :, 0].tolist() == [[1, 1], [0, 1], [0, 0]]
        assert np.array_equal(counted(trace, LastToken(k=4)).ahead, counted(trace, LastToken()).ahead)


def test_the_most_used_so_far(tmp_path: Path) -> None:
    """Layer 0: {0, 1}, then 0 twice and 1 once (before 2, by index), then 0 and 2 twice.

    Layer 1: {0, 1} three times.
    """
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace:
        guesses = counted(trace, Hot())
        assert guesses.ahead[:, :, 0].tolist() == [[2, 2], [2, 2], [2, 2]]
        assert guesses.useful[:, :, 0].tolist() == [[1, 2], [0, 2], [0, 0]]
        assert counted(trace, Hot(k=4)).ahead[:, :, 0].tolist() == [[2, 2], [3, 2], [4, 2]]  # only what was used


def test_without_a_prompt_the_first_token_has_no_prediction(tmp_path: Path) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(2, 0), (2, 0)]) as trace:
        for rule in (LastToken(), Hot(), LastToken(k=1)):
            guesses = counted(trace, rule)
            assert not guesses.ahead[[0, 2]].any()
            assert guesses.ahead[[1, 3]].all()


@pytest.mark.parametrize("prefill", ["cached", "dense"])
def test_the_prompt_s_last_token_predicts_whatever_becomes_of_the_caches(tmp_path: Path, prefill: str) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace:
        assert counted(trace, LastToken(), prefill=prefill).useful[0, :, 0].tolist() == [1, 2]


def test_an_oracle_predicts_everything_and_nothing_else(tmp_path: Path) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace:
        for options in ({"eviction": "none"}, {"eviction": "lru", "cache": 3 * SIZE, "cache_scope": "global"}):
            found = prefetched(trace, Oracle(), **options)
            assert (found.precision, found.recall, found.wasted_bytes) == (1.0, 1.0, 0)
            assert found.read_bytes > 0


def test_predictions_change_neither_hits_nor_the_time_to_first_token(tmp_path: Path) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(2, 1), (2, 1)]) as trace:
        for keep in (False, True):
            options = {"cache": 3 * SIZE, "cache_scope": "global", "keep_cache": keep}
            run = made(trace, LastToken(), "lru", **options)
            found = replay(trace, DEVICE, run.policy, run.eviction, run.settings)
            plain = replay(trace, DEVICE, run.policy, run.eviction, run.settings.but(overlap="pipeline", prefetch=None))
            assert (found.unit_hits, found.ttft_s, found.prompt) == (plain.unit_hits, plain.ttft_s, plain.prompt)
            assert found.time_s.total <= plain.time_s.total
            assert found.flash_read_bytes == plain.flash_read_bytes + found.prefetch.wasted_bytes


# ---------------------------------------------------------------------- the rules alone


def ahead(**fields: Any) -> Ahead:
    given: dict[str, Any] = {
        "layer": 1, "group": "experts", "units": 4, "last": np.array([[1, 0, 0, 1]], bool), "signals": {},
        "needs": ("experts",), "truth": None, "used": 2, "order": np.array([[3, 0]]), "uses": np.array([[2, 5, 5, 0]]),
    }  # fmt: skip
    return Ahead(**given | fields)


def test_the_next_router_ranks_by_logits() -> None:
    logits = np.array([[0.5, 2.0, -1.0, 2.0], [1.0, 1.0, 1.0, 0.0]], np.float32)
    two = ahead(last=np.zeros((2, 4), bool), order=np.full((2, 2), -1), signals={ROUTER_AHEAD: logits})
    assert NextRouter().guess(two).tolist() == [[False, True, False, True], [True, True, False, False]]
    assert NextRouter(k=1).guess(two).tolist() == [[False, True, False, False], [True, False, False, False]]
    assert NextRouter().guess(ahead()).tolist() == [[True, False, False, True]]  # no layer with experts before
    assert NextRouter(k=1).guess(ahead()).tolist() == [[False, False, False, True]]


def test_last_experts_beyond_the_router_s_choice_come_last() -> None:
    """A policy may choose others than the router."""
    given = ahead(last=np.array([[1, 1, 1, 0]], bool), order=np.array([[3, 2]]))
    assert LastToken(k=1).guess(given).tolist() == [[False, False, True, False]]
    assert LastToken(k=2).guess(given).tolist() == [[True, False, True, False]]
    with pytest.raises(PluginError, match="saved masks do not tell the experts' weights"):
        LastToken(k=1).guess(ahead(order=None))


@pytest.mark.parametrize("rule", [LastToken(k=5), Hot(k=5), NextRouter(k=5)])
def test_k_has_bounds(rule: Prefetch) -> None:
    with pytest.raises(PluginError, match="k=5: layer 1 has 4 experts; set k to at most 4"):
        rule.guess(ahead())
    with pytest.raises(PluginError, match="counts experts, and group down holds none; leave k out"):
        rule.guess(ahead(group="down", used=0, order=None))


def test_hot_list_reads_counts_and_sets(tmp_path: Path) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace:
        out, sets = tmp_path / "guess.npz", tmp_path / "sets.npz"
        run_cli("train", "prefetch", trace.path, "--policy", "router", "--hw", "oneplus15r", "-o", out)
        rule = HotList(path=out)  # decoded tokens: layer 0 needs 0, 1, 2, 2, 3, 3, layer 1 needs 0, 0, 1, 1, 2, 3
        assert rule.counted["uses/000/experts"].tolist() == [1, 1, 2, 2]
        assert counted(trace, rule).useful[:, :, 0].tolist() == [[1, 2], [2, 2], [1, 0]]
        assert counted(trace, HotList(path=out, k=4)).ahead.tolist() == [[[4], [4]]] * 3
        lists = {f"layers/{layer:03d}/experts": np.array([1, 0, 0, 1], bool) for layer in range(2)}
        write_units(sets, {}, lists)
        assert counted(trace, HotList(path=sets)).useful[:, :, 0].tolist() == [[1, 1], [1, 1], [1, 1]]
    one = HotList(path=sets)
    for mistake, message in (
        (lambda: HotList(path=sets, k=1).guess(ahead()), "k=1: .* lists 2 experts in layer 1 and does not rank them"),
        (lambda: one.guess(ahead(used=0, group="down")), "a file of units lists experts, and group down holds none"),
        (lambda: one.guess(ahead(layer=7)), "layers/007/experts must be bool .* the file lacks it"),
        (lambda: rule.guess(ahead(layer=7)), "uses/007/experts must be int64 .* the file lacks it"),
        (lambda: HotList(path=tmp_path / "no.npz").guess(ahead()), "no.npz: cannot be read"),
    ):
        with pytest.raises(PluginError, match=message):
            mistake()


def test_next_router_on_a_trace(tmp_path: Path) -> None:
    """Logits that name the true experts are an oracle, but for the first layer, which goes by the token before."""
    chosen = np.array(BY_HAND)
    layer = LayerShape(attention="none", dense_bytes=65_536, experts=Experts(count=4, used=2, bytes=SIZE))
    model = ModelShape(
        name="routed", num_hidden_layers=2, hidden_size=0, intermediate_size=0, num_attention_heads=0,
        num_key_value_heads=0, head_dim=0, vocab_size=0, layers=(layer, layer),
    )  # fmt: skip
    assert (model.layers_with(ROUTER_AHEAD), model.signal_width(ROUTER_AHEAD)) == ([1], 4)
    header = TraceHeader(
        origin="recorded", model=model, signals=["experts", ROUTER_AHEAD], sequences=[Sequence(tokens=4, prompt=1)]
    )
    logits = np.zeros((4, 4), np.float32)
    np.put_along_axis(logits, chosen[1], 1.0, axis=1)
    with TraceWriter(tmp_path / "t.npz", header) as writer:
        for number in range(2):
            writer.write(number, "experts", 0, chosen[number])
        writer.write(1, ROUTER_AHEAD, 0, logits)
        writer.commit(4)
        writer.finish()
    with Trace(tmp_path / "t.npz") as trace:
        guesses = counted(trace, NextRouter())
        assert guesses.useful[:, :, 0].tolist() == [[1, 2], [1, 2], [1, 2]]
        list(trace.verify())


# ---------------------------------------------------------------------- a plain twin


class Seen(Observer):
    """What the caches held before each token, and what it needed."""

    sees_cache = True

    def __init__(self) -> None:
        self.before: dict[tuple[int, int], set[int]] = {}
        self.needed: dict[tuple[int, int], set[int]] = {}

    def masks(self, place: Place, token: int, served: Served) -> None:
        assert served.before is not None
        for at, (held, units) in enumerate(zip(served.before, served.units, strict=True), token):
            self.before[at, place.layer] = set(np.flatnonzero(held).tolist())
            self.needed[at, place.layer] = set(np.flatnonzero(units).tolist())


def predicted_last(past: list[list[int]], needed: list[set[int]], k: int | None) -> set[int]:
    """The last row that is known: of the prompt the router's, of the decode what was needed."""
    if not past:
        return set()
    last = needed[-1] if needed else set(past[-1])
    order = [e for e in past[-1] if e in last] + sorted(last - set(past[-1]))
    return set(order[:k])


def predicted_hot(past: list[list[int]], needed: list[set[int]], k: int | None, used: int) -> set[int]:
    prompt = past[: len(past) - len(needed)]
    uses: dict[int, int] = {}
    for row in [*map(set, prompt), *needed]:
        for expert in row:
            uses[expert] = uses.get(expert, 0) + 1
    return set(sorted(uses, key=lambda e: (-uses[e], e))[: k or used])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_predictions_are_those_of_a_plain_twin(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    draw: Callable[..., Any] = data.draw
    layers, experts = draw(st.integers(1, 3)), draw(st.integers(2, 7))
    used = draw(st.integers(1, min(3, experts)))
    sequences = draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=1, max_size=3))
    sequences = [(decoded + prompt, prompt) for decoded, prompt in sequences]
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    rows = sum(tokens for tokens, _ in sequences)
    chosen = np.array([[rng.permutation(experts)[:used] for _ in range(rows)] for _ in range(layers)])
    if used > 1:
        chosen[:, ::3, -1] = -1  # fewer
    k = draw(st.sampled_from([None, *range(1, experts + 1)]))
    rule = draw(st.sampled_from([LastToken(k=k), Hot(k=k), Oracle()]))
    policy = draw(st.sampled_from(["router", "router-k"]))
    options = {
        "eviction": draw(st.sampled_from(["none", "lru", "lfu"])), "cache": draw(st.integers(0, 20)) * SIZE,
        "cache_scope": draw(st.sampled_from(["global", "layer", "matrix"])), "keep_cache": draw(st.booleans()),
        "prefill": draw(st.sampled_from(["cached", "dense"])),
    }  # fmt: skip
    with opened(tmp_path_factory.mktemp("twin") / "t.npz", chosen, sequences, experts, 0) as trace:
        parameters = {"k": 1} if policy == "router-k" else {}
        chosen_settings = Settings(
            overlap="prefetch", prefetch=("rule", rule), **{n: v for n, v in options.items() if n != "eviction"}
        )
        run = run_of(
            trace, DEVICE, POLICIES.make(policy, parameters)[1], EVICTIONS.make(options["eviction"])[1], chosen_settings
        )
        watched, seen = run.watched(), Seen()
        count(run, [*watched.observers, seen])
    assert watched.guesses is not None
    token = first = 0
    for tokens, prompt in sequences:
        for at in range(prompt, tokens):
            for layer in range(layers):
                past = [[e for e in row if e >= 0] for row in chosen[layer, first : first + at].tolist()]
                needed = [seen.needed[token - back, layer] for back in range(at - prompt, 0, -1)]
                now = seen.needed[token, layer]
                if isinstance(rule, Oracle):
                    guess = now
                elif isinstance(rule, LastToken):
                    guess = predicted_last(past, needed, k)
                else:
                    guess = predicted_hot(past, needed, k, used)
                guess = guess - seen.before[token, layer]
                assert watched.guesses.ahead[token, layer, 0] == len(guess)
                assert watched.guesses.useful[token, layer, 0] == len(guess & now)
            token += 1
        first += tokens


# ---------------------------------------------------------------------- refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lockstep": 2}, "--overlap prefetch: does not go with --lockstep and --speculate, since a rule predicts one"),
        ({"speculate": 2, "accept": 0.5}, "--overlap prefetch: does not go with --lockstep and --speculate"),
    ],
)
def test_steps_of_several_members_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(2, 0), (2, 0)]) as trace, pytest.raises(SettingError, match=message):
        made(trace, LastToken(), **options)


def test_a_trace_without_the_next_router_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace, pytest.raises(SettingError) as refusal:
        made(trace, NextRouter())
    assert str(refusal.value) == (
        "--prefetch rule: t.npz has no signal router_ahead; record it with --signals experts,router_ahead, or choose "
        "another rule, such as last-token"
    )


def test_a_policy_cannot_need_the_next_router(tmp_path: Path) -> None:
    """A closed loop would not have it."""
    (tmp_path / "mine.py").write_text(
        "from hwsim.policy import Group, Policy\n\n\nclass Mine(Policy):\n    \"\"\"Mine.\"\"\"\n\n"
        "    def groups(self, model):\n"
        "        return [Group('experts', axis='expert', slices=['experts.expert'], "
        "needs=['router_ahead'])]\n"
    )  # fmt: skip
    policy = POLICIES.make(str(tmp_path / "mine.py"))[1]
    with opened(tmp_path / "t.npz", BY_HAND, [(4, 1)]) as trace, pytest.raises(HwsimError, match="router_ahead"):
        run_of(trace, DEVICE, policy, EVICTIONS.make("lru")[1], Settings(cache=SIZE))


# ---------------------------------------------------------------------- measured


@pytest.mark.skipif("HWSIM_MEASURED_DATA" not in os.environ, reason="HWSIM_MEASURED_DATA names no folder")
@pytest.mark.parametrize(("name", "last", "listed"), [("qwen", 38.0, 37.6), ("gptoss", 17.9, 26.7)])
def test_published_shares_of_predictors(name: str, last: float, listed: float, tmp_path: Path) -> None:
    """Shares of the experts that decoded tokens need, the first one left out, as it has none before it.

    The published hot list has the k experts of each layer that all decoded tokens of the same run used most, so it
    knows the future; that of another trace, or of the sequence so far, does not.
    """
    (source,) = Path(os.environ["HWSIM_MEASURED_DATA"]).glob(f"bigmoe/*{name}.route.csv")
    with Trace(write(tmp_path / "t.npz", route_trace(source))) as trace:
        guesses = counted(trace, LastToken())
        used = guesses.ahead[1:].sum()
        assert used == guesses.ahead[1:].size * trace.header.model.layers[0].experts.used  # type: ignore[union-attr]
        assert round(100 * guesses.useful[1:].sum() / used, 1) == last
        run_cli(
            "train", "prefetch", trace.path, "--policy", "router", "--hw", "oneplus15r",
            "-o", tmp_path / "guess.npz",
        )  # fmt: skip
        guesses = counted(trace, HotList(path=tmp_path / "guess.npz"))
        assert round(100 * guesses.useful[1:].sum() / guesses.ahead[1:].sum(), 1) == listed


@pytest.mark.skipif("HWSIM_MEASURED_DATA" not in os.environ, reason="HWSIM_MEASURED_DATA names no folder")
def test_a_cache_of_one_token_s_demand_leaves_the_token_before_nothing_to_read(tmp_path: Path) -> None:
    """As on the phone, which read 14 experts ahead in 256 tokens (`spec_experts` of `pf1_k2`)."""
    (source,) = Path(os.environ["HWSIM_MEASURED_DATA"]).glob("bigmoe/*gptoss.route.csv")
    write(tmp_path / "t.npz", route_trace(source))
    done = run_cli(
        "replay", tmp_path / "t.npz", "--hw", "oneplus15r", "--policy", "router", "--cache", "2000MiB", "--cache-scope",
        "global", "--eviction", "lru", "--overlap", "prefetch", "--prefetch", "last-token", "--json", "-",
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert found["prefetch"]["recall"] < 0.01
    assert (found["prefetch"]["read_bytes"], found["prefetch"]["wasted_bytes"]) == (0, 0)
