"""The closed loop of mixtures of experts, against transformers, against the replay and against sums by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

import torch

from hwsim.closed_loop import Candidate, evaluation
from hwsim.closed_loop.generation import Stepper
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.closed_loop.routing import Rerouting, find_rules
from hwsim.errors import HwsimError, ModelError, SettingError
from hwsim.masking.mask_file import MaskWriter
from hwsim.policy import Context, Group, Policy
from hwsim.record import Settings as Reading
from hwsim.record import record
from hwsim.record.inventory.routing import Rule
from hwsim.simulation.metrics import Evaluation, Result
from hwsim.simulation.run import Conditions, Source, recorded
from hwsim.simulation.settings import Settings
from hwsim.testing.drive import MaskCollector
from hwsim.trace import Sequence, Trace
from hwsim.trace.steps import Together
from tests.closed_loop.loops import candidate, generate, rule
from tests.closed_loop.sparse import KNOWN, by_hand, down_of, keep_in, logits_of, made
from tests.conftest import flat_profile
from tests.record.architectures import VOCABULARY, where
from tests.record.expected import hooked, top
from tests.record.mixtures import MIXTURES, glu_of
from tests.runs import evaluate, replay

READING = Reading(tokens=30, context=15, prompt=5)
TOKENS = 12


@pytest.fixture(scope="module", autouse=True)
def _parent(tmp_path_factory: pytest.TempPathFactory) -> None:
    keep_in(tmp_path_factory.mktemp("mixtures"))


@pytest.fixture(params=(*KNOWN, "phimoe"), scope="module")  # so that all tests of one come together
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=KNOWN, scope="module")
def known(request: pytest.FixtureRequest) -> str:
    return str(request.param)


class Others(Policy):
    """The model's first choice, and others that it did not choose: more of them at every second token."""

    def groups(self, model: Any) -> list[Group]:
        """One group, decided from the model's choice."""
        return [Group("experts", "expert", ["experts.expert"], needs=["experts"])]

    def select(self, ctx: Context) -> np.ndarray:
        """At tokens 0, 3, 6, ... the model's own choice."""
        mask, own = np.zeros(ctx.units, bool), ctx.signals["experts"]
        if ctx.token % 3 == 0:
            mask[own] = True
            return mask
        mask[own[0]] = True
        others = np.setdiff1d(np.arange(ctx.units), own)[: 1 + ctx.token % 2 * 2]
        mask[others] = True
        return mask


class Mixed(Policy):
    """The router's choice, and dip's columns of the dense MLPs."""

    def groups(self, model: Any) -> list[Group]:
        """A dense MLP's groups, and the experts."""
        return [
            Group("input", "hidden", ["gate.column", "up.column"], 0.5, ["input"]),
            Group("down", "neuron", ["down.column"], 0.5, ["glu"]),
            Group("experts", "expert", ["experts.expert"], needs=["experts"]),
        ]

    def score(self, ctx: Context) -> np.ndarray:
        """Absolute values."""
        return np.abs(ctx.signals[ctx.group.needs[0]])

    def select(self, ctx: Context) -> np.ndarray | None:
        """The last of the chosen experts is left out."""
        if ctx.group.axis != "expert":
            return None
        mask = np.zeros(ctx.units, bool)
        mask[ctx.signals["experts"][:-1]] = True
        return mask


def run(
    name: str, *candidates: Candidate, eviction: str = "lru", reading: Reading = READING, batch: int | None = None,
    masks: MaskWriter | None = None, **chosen: Any,
) -> list[Evaluation]:  # fmt: skip
    settings = Settings(**{"cache": half(name)} | chosen)
    return evaluate(
        made(name).folder, "persuasion", flat_profile(), list(candidates), rule(eviction), reading, settings,
        batch=batch, masks=masks,
    )  # fmt: skip


def half(name: str) -> int:
    """Bytes of half of all experts, at 4 bits."""
    shape = made(name).inventory.shape
    every = sum(shape.expert_parameters(layer) * MIXTURES[name].experts.count for layer in MIXTURES[name].sparse)
    return every // 4


def traced(name: str, tmp_path: Path) -> Path:
    """A recording of the text of `run`."""
    path = tmp_path / "t.npz"
    if not path.exists():
        record(path, str(made(name).folder), settings=READING)
    return path


def same_hits(one: Result, other: Result) -> None:
    for field in ("groups", "prompt", "unit_requests", "unit_hits", "flash_bytes", "dram_bytes", "ttft_s", "time_s",
                  "mlp_density", "throughput_tok_s"):  # fmt: skip
        assert getattr(one, field) == getattr(other, field), field


def loop_of(
    name: str, policy: Policy, *, eviction: str = "lru", steps: bool = False, observers: Any = (),
    rules: dict[int, Rule | None] | None = None, **chosen: Any,
) -> ClosedLoop:  # fmt: skip
    own = made(name)
    source = Source(recorded(own.inventory.shape, [Sequence(tokens=TOKENS, prompt=3)]), {})
    settings = Settings(**{"cache": half(name)} | chosen)
    masking = Conditions(flat_profile(), rule(eviction), settings).run(source, policy, "own").masking
    rules = find_rules(own.model, own.layers, torch) if rules is None else rules
    return ClosedLoop(own.layers, masking, observers, together=Together(prompts=True), rules=rules, steps=steps)


def text() -> np.ndarray:
    return np.random.default_rng(3).integers(2, VOCABULARY, TOKENS)


def looped(name: str, loop: ClosedLoop, prompt: int = 0) -> Any:
    loop.window([Sequence(tokens=TOKENS, prompt=prompt)], 0)
    with loop:
        logits = logits_of(made(name).model, text())
    loop.counts()
    return logits


# ---------------------------------------------------------------------- the model's own choice


def test_router_is_transformers_and_the_replay(family: str, tmp_path: Path) -> None:
    """Losses bit for bit; requests and hits of each layer, the prompt's included, those of the recording."""
    (loop,) = run(family, candidate("router"))
    assert loop.perplexity == loop.dense_perplexity
    assert (loop.top1, loop.notes) == (1.0, replayed(family, tmp_path).notes)
    assert abs(loop.kl) < 1e-7
    assert torch.equal(
        looped(family, loop_of(family, candidate("router").policy), 3), logits_of(made(family).model, text())
    )
    again = replayed(family, tmp_path)
    same_hits(loop, again)
    assert loop.prompt is not None
    assert loop.prompt.tokens == 10
    assert 0 < loop.unit_hits < loop.unit_requests
    assert {group.layer for group in loop.groups} == set(MIXTURES[family].sparse)


def replayed(name: str, tmp_path: Path, policy: str = "router", eviction: str = "lru", **chosen: Any) -> Result:
    with Trace(traced(name, tmp_path)) as trace:
        own = candidate(policy)
        settings = Settings(**{"cache": half(name)} | chosen)
        return replay(trace, flat_profile(), own.policy, rule(eviction), settings, policy_name=policy)


@pytest.mark.parametrize("eviction", ["lru", "lfu", "belady", "lfru"])
@pytest.mark.parametrize(
    "chosen",
    [{}, {"prefill": "dense"}, {"prefill_chunk": 2}, {"cache_scope": "layer"}, {"cache_scope": "global"},
     {"cache_scope": "global", "prefill_chunk": 2}, {"cache_scope": "global", "prefill": "dense"}],
)  # fmt: skip
def test_every_cache_and_prompt_is_as_in_a_replay(eviction: str, chosen: dict[str, Any], tmp_path: Path) -> None:
    (loop,) = run("qwen2_moe", candidate("router"), eviction=eviction, batch=2, **chosen)
    same_hits(loop, replayed("qwen2_moe", tmp_path, eviction=eviction, **chosen))
    assert (loop.prompt is None) == ("prefill" in chosen)
    assert loop.perplexity == loop.dense_perplexity
    assert not any("token by token" in note for note in loop.notes)


def test_drop_cold_of_nothing_is_router(known: str) -> None:
    router, cold, some = run(
        known, candidate("router"), candidate("drop-cold", factor=0), candidate("drop-cold", factor=100)
    )
    same_hits(router, cold)
    assert cold.perplexity == router.perplexity
    assert some.unit_requests < router.unit_requests
    assert some.perplexity != router.perplexity


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_rounding_does_not_trouble_the_guards(family: str, dtype: str) -> None:
    """Weights, rules and sums in half precision."""
    reading = Reading(READING.tokens, READING.context, READING.prompt, dtype=dtype)
    others = candidate("router-k", k=1) if family == "phimoe" else Candidate("others", Others())
    router, cold, other = run(family, candidate("router"), candidate("drop-cold", factor=100), others, reading=reading)
    assert router.perplexity == router.dense_perplexity
    assert cold.unit_requests < router.unit_requests
    assert other.kl > 0


# ---------------------------------------------------------------------- another choice, by hand


def test_all_experts_are_the_dense_mixture(known: str) -> None:
    every = candidate("router-k", k=MIXTURES[known].experts.count)
    try:
        logits = looped(known, loop_of(known, every.policy))
    except HwsimError as error:
        assert "ranks experts by more than the router's logits" in str(error)
        assert known in ("deepseek_v3", "dots1", "lfm2_moe", "nemotron_h-moe")
        logits = looped(known, loop_of(known, All()))
    with by_hand(known, made(known).model, lambda layer, logits, own: torch.ones_like(own)):
        expected = logits_of(made(known).model, text())
    close(logits, expected)


class All(Others):
    """Every expert."""

    def select(self, ctx: Context) -> np.ndarray:
        """All."""
        return np.ones(ctx.units, bool)


def test_one_expert(known: str) -> None:
    """The one with the largest weight: of those that the model chose, for biases only change which are chosen."""
    logits = looped(known, loop_of(known, candidate("router-k", k=1).policy))

    def first(layer: int, logits: Any, own: Any) -> Any:
        worth = logits.float().softmax(-1) * own
        if known == "gemma4_text":  # ranked by the weights, scales included
            worth = worth * made(known).model.get_submodule(MIXTURES[known].layers)[layer].router.per_expert_scale
        return torch.zeros_like(own).scatter(1, worth.argmax(-1, keepdim=True), True)

    with by_hand(known, made(known).model, first):
        expected = logits_of(made(known).model, text())
    close(logits, expected)


@pytest.mark.parametrize("prompt", [0, 3])
def test_a_policys_choice_is_what_the_model_computes(known: str, prompt: int) -> None:
    """More experts than the model's own, fewer, and others; tokens of a prompt keep the model's own."""
    seen = MaskCollector()
    logits = looped(known, loop_of(known, Others(), observers=[seen]), prompt)

    def others(layer: int, logits: Any, own: Any) -> Any:
        mask = own.clone()
        worth = logits.float().softmax(-1) * own
        if known == "gemma4_text":
            worth = worth * made(known).model.get_submodule(MIXTURES[known].layers)[layer].router.per_expert_scale
        for row in range(prompt, TOKENS):
            token = row - prompt
            if token % 3:
                mask[row] = False
                mask[row, worth[row].argmax()] = True
                mask[row, (~own[row]).nonzero()[: 1 + token % 2 * 2, 0]] = True
        return mask

    with by_hand(known, made(known).model, others) as masks:
        expected = logits_of(made(known).model, text())
    close(logits, expected)
    for (layer, _), decided in seen.masks_of.items():
        assert np.array_equal(decided, masks[layer][0][prompt:].numpy())


def close(found: Any, expected: Any) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


# ---------------------------------------------------------------------- token by token


@pytest.mark.parametrize(
    ("name", "policy"),
    [*((name, policy) for name in ("qwen3_moe", "deepseek_v3", "gemma4_text", "lfm2_moe")
       for policy in ("drop-cold", "others")), ("qwen3_moe", "cumulative"), ("gpt_oss", "max-rank")],
)  # fmt: skip
def test_token_by_token_is_the_window_at_once(name: str, policy: str) -> None:
    own = Others() if policy == "others" else candidate(policy).policy
    window, stepped = MaskCollector(), MaskCollector()
    loop = loop_of(name, own, observers=[window])
    whole = looped(name, loop, 3)
    counts = loop.counts()
    loop = loop_of(name, own, observers=[stepped], steps=True)
    stepper = Stepper(made(name).model, torch, loop)
    ids = text().tolist()
    rows = [stepper.prefill(ids[:3]), *(stepper.step(token) for token in ids[3:])]
    close(torch.stack(rows), whole[2:])
    for key, masks in window.masks_of.items():
        assert np.array_equal(masks, stepped.masks_of[key])
    assert np.array_equal(counts.hits, np.concatenate([step.hits for step in stepper.counts]))
    assert counts.prompt is not None
    (prompt,) = stepper.prompts
    assert prompt.prompt is not None
    assert np.array_equal(counts.prompt.hits, prompt.prompt.hits)
    assert np.array_equal(counts.prompt.requests, prompt.prompt.requests)


@pytest.mark.parametrize("eviction", ["lru", "lfu"])
@pytest.mark.parametrize("chosen", [{}, {"prefill_chunk": 2}, {"prefill": "dense"}])
def test_a_policy_that_reads_a_global_cache_runs_token_by_token(
    eviction: str, chosen: dict[str, Any], tmp_path: Path
) -> None:
    """If it changes nothing, its hits are those of the replay; if it does, they are more."""
    nothing, some = run(
        "qwen3_moe", candidate("drop-cold", factor=0), candidate("drop-cold"), eviction=eviction, cache_scope="global",
        **chosen,
    )  # fmt: skip
    assert all(any("token by token" in note for note in result.notes) for result in (nothing, some))
    same_hits(nothing, replayed("qwen3_moe", tmp_path, eviction=eviction, cache_scope="global", **chosen))
    assert nothing.perplexity == pytest.approx(nothing.dense_perplexity, rel=1e-6)
    assert some.hit_rate > nothing.hit_rate


def test_a_layers_cache_is_read_in_whole_windows(known: str) -> None:
    """It has one group, so nothing couples it with others."""
    layer, alone = (run(known, candidate("drop-cold"), cache_scope=scope)[0] for scope in ("layer", "matrix"))
    assert not any("token by token" in note for note in layer.notes)
    assert layer.unit_requests > 0
    assert (layer.perplexity, layer.groups) == (alone.perplexity, alone.groups)


@pytest.mark.parametrize("policy", ["router", "drop-cold", "cache-prior"])
def test_batches_of_windows(policy: str) -> None:
    one, two = (run("qwen3_moe", candidate(policy), batch=batch)[0] for batch in (1, 2))
    same_hits(one, two)
    assert one.perplexity == pytest.approx(two.perplexity, rel=1e-6)


@pytest.mark.parametrize("scope", ["matrix", "layer", "global"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gemma4_text"])
def test_generation(name: str, scope: Any, tmp_path: Path) -> None:
    """Without a change it writes what transformers writes; hits are those of the text as a window."""
    prompt, settings = "Anne hoped", Settings(cache=half(name), cache_scope=scope)
    own = generate(made(name).folder, prompt, candidate("router"), 8, settings, "lru")
    model = made(name).model
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(made(name).folder)(prompt)["input_ids"]
    with torch.inference_mode():
        plain = model.generate(torch.as_tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :].tolist()
    assert own.ids == plain
    assert own.result is not None
    assert own.result.prompt is not None
    assert own.result.prompt.tokens == len(ids)
    other = generate(made(name).folder, prompt, candidate("drop-cold"), 8, settings, "lru")
    assert other.result is not None
    assert other.result.unit_requests < own.result.unit_requests * other.result.tokens / own.result.tokens
    dense = generate(made(name).folder, prompt, candidate("router"), 8, settings.but(prefill="dense"), "lru")
    assert dense.result is not None
    assert (dense.result.prompt, dense.ids) == (None, own.ids)
    assert dense.result.unit_hits < own.result.unit_hits


def test_layer_by_layer_is_in_memory(known: str) -> None:
    size = sum(parameter.numel() * 4 for parameter in made(known).model.parameters())
    parts = Reading(READING.tokens, READING.context, READING.prompt, max_memory=size - 1)
    whole, apart = (run(known, candidate("drop-cold"), reading=reading, batch=1)[0] for reading in (READING, parts))
    same_hits(whole, apart)
    assert apart.perplexity == pytest.approx(whole.perplexity, rel=1e-5)


# ---------------------------------------------------------------------- a dense MLP beside or before the experts


@pytest.mark.parametrize("name", ["gemma4_text", "deepseek_v3"])
def test_groups_of_a_dense_mlp_and_of_experts(name: str) -> None:
    model, place = made(name).model, where(name)
    logits = looped(name, loop_of(name, Mixed()))
    masked = set()

    def cut(layer: int, point: str, value: Any) -> Any:
        if point in ("input", "glu"):
            masked.add((layer, point))
            return top(value, value.shape[-1] // 2)
        return None

    with hooked(model, place, cut), by_hand(name, model, without_last(name)):
        expected = logits_of(model, text())
    dense = {"gemma4_text": {0, 1, 2}, "deepseek_v3": {0}}[name]
    assert {layer for layer, _ in masked} == dense
    close(logits, expected)


@pytest.mark.parametrize("name", ["gemma4_text", "deepseek_v3"])
def test_prompts_go_through_the_caches_of_both(name: str, tmp_path: Path) -> None:
    """As in a replay of the first layer, whose signals no mask has changed."""
    (loop,) = run(name, Candidate("mixed", Mixed()), prefill_chunk=2)
    path = tmp_path / "t.npz"
    signals = ("input", "up", "gate", "glu", "router", "experts", "expert_weights")
    record(path, str(made(name).folder), settings=Reading(30, 15, 5, signals=signals))
    with Trace(path) as trace:
        again = replay(trace, flat_profile(), Mixed(), rule("lru"), Settings(cache=half(name), prefill_chunk=2))
    assert loop.prompt is not None
    assert again.prompt is not None
    assert loop.prompt.requests == again.prompt.requests
    assert loop.unit_requests == again.unit_requests
    first = [
        [group for group in result.groups if (group.layer, group.group) == (0, "input")] for result in (loop, again)
    ]
    assert first[0] == first[1]


# ---------------------------------------------------------------------- parts of experts


class Parts(Policy):
    """Columns, neurons and outputs of the model's own experts but for the last one."""

    def groups(self, model: Any) -> list[Group]:
        """All parts of an expert."""
        return [
            Group("choice", "expert", [], needs=["experts"]),
            Group(
                "input", "hidden", ["expert_gate.column", "expert_up.column"], 0.5, ["expert_input"], within="choice"
            ),
            Group("down", "neuron", ["expert_down.column"], 0.25, ["expert_glu"], within="choice"),
        ]

    def score(self, ctx: Context) -> np.ndarray:
        """Absolute values."""
        return np.abs(ctx.signals[ctx.group.needs[0]])

    def select(self, ctx: Context) -> np.ndarray | None:
        """All but the last expert."""
        return Mixed().select(ctx)


def without_last(name: str) -> Any:
    def fewer(layer: int, logits: Any, own: Any) -> Any:
        worth = logits.float().softmax(-1)
        if name == "gemma4_text":
            worth = worth * made(name).model.get_submodule(MIXTURES[name].layers)[layer].router.per_expert_scale
        return own.scatter(1, torch.where(own, worth, 9.0).argmin(-1, keepdim=True), False)

    return fewer


def partial_outputs(name: str, module: Any, value: Any) -> Any:
    """Half of the input and a quarter of glu of each expert."""
    count = MIXTURES[name].experts.count
    glu = glu_of(name, module, top(value, value.shape[-1] // 2), torch.arange(count).expand(len(value), -1))
    return down_of(name, module, top(glu, glu.shape[-1] // 4))


@pytest.mark.parametrize("name", [name for name in KNOWN if name != "nemotron_h-moe"])
def test_parts_of_experts_by_hand(name: str) -> None:
    seen = MaskCollector()
    logits = looped(name, loop_of(name, Parts(), observers=[seen]))
    with by_hand(name, made(name).model, without_last(name), partial_outputs):
        expected = logits_of(made(name).model, text())
    close(logits, expected)
    experts, first = MIXTURES[name].experts, MIXTURES[name].sparse[0]
    masks = seen.masks_of[first, "down"]
    assert (masks.sum(1) == (experts.used - 1) * (experts.intermediate_size // 4)).all()


def test_a_prompt_keeps_whole_experts() -> None:
    """Its tokens before any masked one are those of transformers, bit for bit."""
    logits = looped("qwen3_moe", loop_of("qwen3_moe", Parts()), 5)
    plain = logits_of(made("qwen3_moe").model, text())
    assert torch.equal(logits[:5], plain[:5])
    assert not torch.equal(logits[5:], plain[5:])


def test_all_parts_of_the_models_own_experts_are_transformers(known: str) -> None:
    whole = candidate("dip-experts", density=1)
    assert torch.equal(looped(known, loop_of(known, whole.policy)), logits_of(made(known).model, text()))


@pytest.mark.parametrize("chosen", [{}, {"cache_scope": "layer", "prefill": "dense"}, {"prefill_chunk": 2}])
def test_dip_in_experts_counts_what_a_replay_counts(chosen: dict[str, Any], tmp_path: Path) -> None:
    """Requests of the whole, and the prompt's hits in the first layer, which no mask has changed."""
    (loop,) = run("qwen3_moe", candidate("dip-experts"), **chosen)
    path = tmp_path / "t.npz"
    signals = ("experts", "expert_input", "expert_glu")
    record(path, str(made("qwen3_moe").folder), settings=Reading(30, 15, 5, signals=signals))
    with Trace(path) as trace:
        settings = Settings(**{"cache": half("qwen3_moe")} | chosen)
        again = replay(trace, flat_profile(), candidate("dip-experts").policy, rule("lru"), settings)
    assert loop.unit_requests == again.unit_requests
    assert loop.mlp_density == again.mlp_density
    assert loop.kl > 0
    if "prefill" not in chosen:
        assert loop.prompt is not None
        assert again.prompt is not None
        assert loop.prompt.requests == again.prompt.requests
        assert loop.groups[0].requests == again.groups[0].requests


def test_parts_of_experts_token_by_token() -> None:
    whole = looped("qwen3_moe", loop_of("qwen3_moe", Parts()), 3)
    stepper = Stepper(made("qwen3_moe").model, torch, loop_of("qwen3_moe", Parts(), steps=True))
    ids = text().tolist()
    close(torch.stack([stepper.prefill(ids[:3]), *(stepper.step(token) for token in ids[3:])]), whole[2:])


# ---------------------------------------------------------------------- unknown rules, guards and refusals


def test_an_unknown_rule_allows_fewer_experts_only() -> None:
    (fewer,) = run("phimoe", candidate("router-k", k=1))
    note = "router-k: how this model's router weighs chosen experts is not known; where experts were left out, the "
    assert any(text.startswith(note) for text in fewer.notes)
    assert fewer.kl > 0
    with pytest.raises(ModelError, match="policy own: layer 0: reads experts that the model does not choose") as error:
        looped("phimoe", loop_of("phimoe", Others()))
    assert "\n" not in str(error.value)


def test_the_guard_of_the_rule_can_fail(known: str) -> None:
    rules = {layer: Rule("sigmoid", divided=False, scale=0.3) for layer in MIXTURES[known].sparse}
    first = MIXTURES[known].sparse[0]
    with pytest.raises(ModelError, match=f"layer {first}: the model's weights of the experts that it chooses do not"):
        looped(known, loop_of(known, candidate("router").policy, rules=rules))


def test_the_guard_of_the_sum_can_fail(monkeypatch: Any) -> None:
    original = Rerouting.choose

    def choose(self: Any, *given: Any) -> Any:
        changed = original(self, *given)
        return changed and (changed[0], changed[1] * 1.5)

    monkeypatch.setattr(Rerouting, "choose", choose)
    with pytest.raises(ModelError, match="layer 0: the sum of weights x outputs of the chosen experts is not what"):
        looped("qwen3_moe", loop_of("qwen3_moe", Others()))


def test_experts_that_do_not_run_are_noticed(monkeypatch: Any) -> None:
    block = made("qwen3_moe").model.model.layers[1].mlp
    loop = loop_of("qwen3_moe", candidate("router").policy)
    monkeypatch.setattr(block, "forward", torch.zeros_like)
    with pytest.raises(ModelError, match="layer 1: the model did not run its experts, so no mask was decided there"):
        looped("qwen3_moe", loop)


class Oracle(Others):
    """Needs what experts compute."""

    def groups(self, model: Any) -> list[Group]:
        """From glu of the experts."""
        return [Group("experts", "expert", ["experts.expert"], needs=["expert_glu"], oracle=True)]


class Early(Parts):
    """Masks the input of experts by their glu."""

    def groups(self, model: Any) -> list[Group]:
        """An oracle."""
        choice, entering, down = super().groups(model)
        return [choice, replace(entering, needs=["expert_glu"], oracle=True), down]


class Divided(Parts):
    """Chooses another expert for each group."""

    def select(self, ctx: Context) -> np.ndarray | None:
        """One of the model's own, at random."""
        if ctx.group.axis != "expert":
            return None
        mask = np.zeros(ctx.units, bool)
        mask[ctx.rng.permutation(ctx.signals["experts"])[0]] = True
        return mask


def test_what_is_refused(tmp_path: Path) -> None:
    """In one line each."""

    def refused(message: str, name: str, *candidates: Candidate, **more: Any) -> None:
        with pytest.raises(HwsimError, match=message) as error:
            run(name, *candidates, **more)
        assert "\n" not in str(error.value)

    router = candidate("router")
    refused("such an oracle can be replayed, not run", "qwen3_moe", Candidate("o", Oracle()))
    refused("input: is decided from expert_glu, which the running model knows only after", "qwen3_moe",
            Candidate("e", Early()))  # fmt: skip
    refused("its groups within experts choose different experts", "qwen3_moe", Candidate("d", Divided()))
    refused("does not decide which of its 8 experts a token reads", "qwen3_moe", candidate("dense"))
    refused("--save-masks: a file of masks does not hold the order", "qwen3_moe", router,
            masks=MaskWriter(tmp_path / "m.npz"))  # fmt: skip
    refused("reads ctx.cached, but belady must know", "qwen3_moe", candidate("drop-cold"), eviction="belady")
    refused("reads ctx.cached, but belady must know", "qwen3_moe", candidate("drop-cold"), eviction="belady",
            cache_scope="global")  # fmt: skip
    for changed in ({"lockstep": 2}, {"speculate": 1, "accept": 0.5}, {"keep_cache": True}):
        refused(f"--{next(iter(changed)).replace('_', '-')}: is for replays", "qwen3_moe", router, **changed)
    refused("caches? of experts admits whole events", "gemma4_text", Candidate("m", Mixed()), cache_scope="layer")


@pytest.mark.parametrize("scope", ["matrix", "layer"])
def test_prompts_of_a_dense_model_may_go_through_its_caches(
    scope: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """As in a replay, but not through caches that are served when the window is done."""
    settings = Settings(dram="60%", prefill="cached", cache_scope=scope, prefill_chunk=2)

    def loop(reading: Reading, policy: str = "magnitude") -> Evaluation:
        return evaluate(
            checkpoints["llama"], "persuasion", flat_profile(), [candidate(policy)], rule("lru"), reading, settings
        )[0]

    if scope != "matrix":
        with pytest.raises(SettingError, match="--prefill cached: a model that runs cannot read prompts through a ca"):
            loop(READING)
        return
    record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=READING)
    with Trace(tmp_path / "t.npz") as trace:
        again = replay(trace, flat_profile(), candidate("magnitude").policy, rule("lru"), settings)
    own = loop(READING)
    assert own.prompt == again.prompt
    assert own.prompt is not None
    assert own.prompt.requests > 0
    assert own.groups[0] == again.groups[0]


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    for call in (
        lambda: run("qwen3_moe", candidate("router"), lora=tmp_path),
        lambda: generate(made("qwen3_moe").folder, "Anne", candidate("router"), 4, Settings(lora=tmp_path)),
    ):
        with pytest.raises(ModelError, match="is a mixture of experts, and --lora needs one MLP"):
            call()


# ---------------------------------------------------------------------- commands and tasks


def test_commands(tmp_path: Path, hwsim: Any) -> None:
    common = ("--model", made("qwen3_moe").folder, "--hw", "pixel8", "--cache", "100kB", "--policy")
    done = hwsim("eval", *common, "drop-cold,router-k", "--tokens", 30, "--context", 15, "--prompt", 4)
    assert done.returncode == 0, done.stderr
    for shown in ("(no change)", "drop-cold", "router-k", "KL to", "router", "first"):
        assert shown in done.stdout, shown
    assert "dense" not in done.stdout
    done = hwsim("generate", *common, "drop-cold", "--prompt", "Anne hoped", "--tokens", 5, "--prefill", "dense")
    assert done.returncode == 0, done.stderr
    assert "drop-cold on Google Pixel 8, simulated:" in done.stdout


@pytest.fixture
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    datasets = pytest.importorskip("datasets", reason="tasks need the extra `tasks`")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))
    yield


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("own_cache")
@pytest.mark.parametrize("dense_prompt", [False, True])
def test_tasks(dense_prompt: bool) -> None:
    pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")
    from hwsim.closed_loop import TaskSettings, evaluate_tasks
    from tests.closed_loop.taskruns import TASKS

    names = ("persuasion_names",) if dense_prompt else ("persuasion_endings", "persuasion_names")
    tasks = TaskSettings(names, TASKS, 2, dense_prompt=dense_prompt)
    conditions = Conditions(flat_profile(), rule("lru"), Settings(cache=half("qwen3_moe")))
    router, cold = evaluate_tasks(
        str(made("qwen3_moe").folder), tasks, conditions, [candidate("router"), candidate("drop-cold")]
    )
    assert router.lm_eval["results"] == router.lm_eval["dense_results"] == cold.lm_eval["dense_results"]
    assert (router.prompt is not None) == dense_prompt
    assert 0 < router.unit_hits < router.unit_requests == router.tokens * 3 * 2
    assert cold.unit_requests < cold.tokens * 3 * 2


def test_a_window_of_a_global_cache_goes_token_by_token_only_if_it_is_read(monkeypatch: Any) -> None:
    """The masks of a policy that reads none are the same either way."""
    at_once = run("qwen3_moe", Candidate("others", Others()), cache_scope="global")[0]
    original = evaluation._masked

    def masked(runner: Any, loop: Any, *args: Any) -> Any:
        if not loop.by_token:
            loop.loop, loop.by_token = loop.loop.by_token(), True
        return original(runner, loop, *args)

    monkeypatch.setattr(evaluation, "_masked", masked)
    stepped = run("qwen3_moe", Candidate("others", Others()), cache_scope="global")[0]
    same_hits(at_once, stepped)
    assert stepped.perplexity == pytest.approx(at_once.perplexity, rel=1e-5)
