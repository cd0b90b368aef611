"""The closed loop against a plain twin that decodes token by token, and against what is known of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

from hwsim.closed_loop.evaluation import Evaluation
from hwsim.errors import ModelError, OutputError, SettingError, TraceError
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.memory.groups import GroupPlan
from hwsim.record import Settings as Reading
from hwsim.record import record
from hwsim.record.runner import kv_argument
from hwsim.simulation.plugins import POLICIES
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from tests.closed_loop.loops import candidate, masking_of, rule
from tests.conftest import flat_profile
from tests.record.conftest import make_model
from tests.runs import evaluate, replay, replay_masks

READING = Reading(tokens=56, context=24, prompt=3)


def run(
    model: Path, policies: dict[str, dict[str, Any]], masks: MaskWriter | None = None, eviction: str = "lfu",
    dram: str = "70%", reading: Reading = READING,
) -> list[Evaluation]:  # fmt: skip
    candidates = [candidate(name, **fields) for name, fields in policies.items()]
    settings = Settings(dram=dram)
    return evaluate(model, "persuasion", flat_profile(), candidates, rule(eviction), reading, settings, masks=masks)


# ---------------------------------------------------------------------- the twin


def decode(family: str, ids: np.ndarray, prompt: int, policy: str, plans: tuple[GroupPlan, ...], gamma: float) -> Any:
    """One window, token by token through the whole model with a KV cache; masks and caches (LRU) as sets, in plain Python.

    `plans` are those of any layer. Returns the masks by (layer, group, token) and the logits of every token after the
    prompt.
    """
    import torch
    from torch.nn.functional import linear

    model = make_model(family)
    state: dict[tuple[int, str], list[int]] = {}
    masks: dict[tuple[int, str, int], list[int]] = {}
    now = {"token": 0}

    def choose(layer: int, plan: GroupPlan, values: np.ndarray) -> np.ndarray:
        name = plan.name
        recent = state.setdefault((layer, name), [])  # who leaves first stands first: least recent, then higher index
        worth = np.abs(values.astype(np.float32))
        if policy == "dip-ca":
            worth = np.where(np.isin(np.arange(plan.units), recent), worth, np.float32(gamma) * worth)
        chosen = sorted(sorted(range(plan.units), key=lambda i: (-worth[i], i))[: plan.k])
        masks[layer, name, now["token"]] = chosen
        hits = [i for i in chosen if i in recent]
        if len(chosen) > plan.capacity:
            fresh = [i for i in chosen if i not in recent][: plan.capacity - len(hits)]
            state[layer, name] = sorted([*hits, *fresh], reverse=True)
        else:
            others = [i for i in recent if i not in chosen]
            keep = plan.capacity - len(chosen)
            state[layer, name] = [*others[len(others) - keep if keep < len(others) else 0 :], *chosen[::-1]]
        mask = np.zeros(plan.units, bool)
        mask[chosen] = True
        return mask

    by_name = {plan.name: plan for plan in plans}

    def patched(layer: int, mlp: Any) -> Any:
        act = torch.nn.functional.silu

        def forward(x: Any) -> Any:
            if family == "phi3":
                half = mlp.gate_up_proj.weight.shape[0] // 2
                w_gate, w_up = mlp.gate_up_proj.weight[:half], mlp.gate_up_proj.weight[half:]
            else:
                w_gate, w_up = mlp.gate_proj.weight, mlp.up_proj.weight
            if now["token"] < 0:  # the prompt
                return linear(linear(x, w_up) * act(linear(x, w_gate)), mlp.down_proj.weight)
            if "input" in by_name:
                x = x * torch.tensor(choose(layer, by_name["input"], x.numpy().ravel()))
            glu = linear(x, w_up) * act(linear(x, w_gate))
            glu = glu * torch.tensor(choose(layer, by_name["down"], glu.numpy().ravel()))
            return linear(glu, mlp.down_proj.weight)

        return forward

    for index, layer in enumerate(model.model.layers):
        layer.mlp.forward = patched(index, layer.mlp)
    logits = []
    with torch.no_grad():
        tokens = torch.as_tensor(ids)[None].long()
        past, kv = None, kv_argument(model)
        if prompt:
            now["token"] = -1
            past = model(tokens[:, :prompt], use_cache=True)[kv]
        for token in range(prompt, len(ids)):
            now["token"] = token - prompt
            out = model(tokens[:, token : token + 1], **{kv: past}, use_cache=True)
            past = out[kv]
            logits.append(out.logits[0, -1].numpy())
    return masks, np.array(logits)


@pytest.mark.parametrize("family", ["llama", "phi3"])
@pytest.mark.parametrize("policy", ["dip", "dip-ca", "magnitude"])
def test_layer_by_layer_is_token_by_token(
    family: str, policy: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The same masks, and the same losses, as a decoder that sees one token at a time."""
    fields: dict[str, Any] = {"density": 0.8} if policy == "magnitude" else {}
    writer = MaskWriter(tmp_path / "masks.npz")
    (result,) = run(checkpoints[family], {policy: fields}, writer, "lru")
    record(tmp_path / "t.npz", str(checkpoints[family]), settings=READING)
    with Trace(tmp_path / "t.npz") as trace:
        ids, header = trace.tokens(), trace.header
    assert ids is not None
    plans = masking_of(POLICIES.make(policy, fields)[1], header.model, header.longest, Settings(dram="70%")).plans
    assert all(
        (plan.k, plan.capacity) == (plans[0][slot].k, plans[0][slot].capacity) for _, slot, plan in plans.places()
    )
    saved = MaskFile(tmp_path / "masks.npz")
    start = row = scored = 0
    nll = 0.0
    for sequence in header.sequences:
        window = ids[start : start + sequence.tokens]
        masks, logits = decode(family, window, sequence.prompt, policy, plans[0], 0.2)
        decoded = sequence.tokens - sequence.prompt
        for plan in plans:
            ours = saved._read(plan, header.decoded)[row : row + decoded]
            for token in range(decoded):
                chosen = np.flatnonzero(ours[token]).tolist()
                assert chosen == masks[plan.layer, plan.name, token], (plan.layer, plan.name, token)
        shifted = logits[:-1] - logits[:-1].max(-1, keepdims=True)
        chance = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
        nll -= float(chance[np.arange(decoded - 1), window[sequence.prompt + 1 :]].sum())
        scored += decoded - 1
        start, row = start + sequence.tokens, row + decoded
    assert result.tokens_scored == scored
    assert result.perplexity == pytest.approx(np.exp(nll / scored), rel=1e-4)


# ---------------------------------------------------------------------- what is known


def test_saved_masks_replay_exactly(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for eviction, policy in (("lfu", "dip-ca"), ("belady", "dip"), ("none", "noisy-oracle")):
        writer = MaskWriter(tmp_path / "masks.npz")
        (loop,) = run(checkpoints["llama"], {policy: {}}, writer, eviction)
        again = replay_masks(MaskFile(tmp_path / "masks.npz"), flat_profile(), rule(eviction), Settings(dram="70%"))
        for field in ("unit_requests", "unit_hits", "flash_bytes", "dram_bytes", "groups", "time_s", "latency_s"):
            assert getattr(loop, field) == getattr(again, field), field
        assert again.provenance["policy"]["name"] == policy
    assert [path.name for path in tmp_path.iterdir()] == ["masks.npz"]


def test_the_first_layer_decides_as_a_replay_does(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Fed the same signals, closed and open loop give the same masks: the first layer's input feels no earlier mask."""
    (loop,) = run(checkpoints["llama"], {"dip-ca": {}})
    record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=READING)
    with Trace(tmp_path / "t.npz") as trace:
        opened = replay(trace, flat_profile(), POLICIES.make("dip-ca")[1], rule(), Settings(dram="70%"))
    assert loop.groups[0] == opened.groups[0]
    assert loop.groups[0].group == "input"
    assert loop.unit_requests == opened.unit_requests


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma", "phi3", "opt"])
def test_everything_kept_is_dense(family: str, checkpoints: dict[str, Path]) -> None:
    dense, whole, half = run(checkpoints[family], {"dense": {}, "dip": {"density": 1}, "dip-ca": {}})
    assert (dense.kl, dense.top1, dense.perplexity) == (0.0, 1.0, dense.dense_perplexity)
    assert whole.perplexity == pytest.approx(dense.perplexity, rel=1e-6)
    assert whole.kl == pytest.approx(0, abs=1e-6)
    assert half.kl > 1e-4
    assert half.mlp_density == pytest.approx(0.5, abs=0.02)
    assert dense.tokens_scored == 56 - 3 * 4  # three windows, each without its prompt and the token after it


def test_dense_perplexity_is_that_of_the_recording(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    reading = Reading(tokens=48, context=24)
    record(tmp_path / "t.npz", str(checkpoints["qwen2"]), settings=reading)
    (dense,) = run(checkpoints["qwen2"], {"dense": {}}, reading=reading)
    with Trace(tmp_path / "t.npz") as trace:
        assert dense.dense_perplexity == pytest.approx(trace.perplexity(), rel=1e-6)


def test_the_oracle_costs_less_than_guessing(checkpoints: dict[str, Path]) -> None:
    best, poor = (
        run(checkpoints["llama"], {"noisy-oracle": {"recall": quality, "precision": quality}})[0].kl
        for quality in (1.0, 0.5)
    )
    assert best < poor


def test_twice_is_the_same(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    for name in ("a", "b"):
        (result,) = run(checkpoints["opt"], {"dip-ca": {}}, MaskWriter(tmp_path / name))
        (tmp_path / f"{name}.json").write_text(result.to_json())
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


# ---------------------------------------------------------------------- what is refused

ATTENTION = """
import numpy as np
from hwsim.policy import Group, Policy

class Cut(Policy):
    "Cuts {slices}."
    def groups(self, model):
        return [Group("g", axis="hidden", slices={slices}, keep=0.5, needs=["{needs}"], oracle=True)]
    def score(self, ctx):
        return np.ones(ctx.units)
"""


@pytest.mark.parametrize(
    ("slices", "needs", "family", "message"),
    [
        (["q.row"], "attn_input", "llama", "cuts q.row; of attention, the closed loop masks columns only"),
        (
            ["q.column", "v.column"],
            "attn_input",
            "phi3",
            "cuts q.column alone, but this model stores q, k, v as one matrix",
        ),
        (["q.column"], "input", "llama", "decides q.column from input, which the running model knows only after"),
        (["up.column"], "glu", "llama", "decides up.column from glu, which the running model knows only after"),
        (["down.row"], "up", "opt", "needs up or gate; a model without a gate has input and glu only"),
        (["up.column"], "input", "phi3", "cuts up.column alone, but this model stores gate, up as one matrix"),
    ],
)
def test_what_cannot_be_masked(
    slices: list[str], needs: str, family: str, message: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "cut.py").write_text(ATTENTION.format(slices=slices, needs=needs))
    with pytest.raises(ModelError, match=message):
        run(checkpoints[family], {str(tmp_path / "cut.py"): {}})


def test_settings_that_are_refused(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(SettingError, match="masks can be saved of one policy at a time"):
        run(checkpoints["llama"], {"dip": {}, "dense": {}}, MaskWriter(tmp_path / "m.npz"))
    with pytest.raises(SettingError, match="the shortest window has 1 decoded token"):
        run(checkpoints["llama"], {"dip": {}}, reading=Reading(tokens=17, context=16))
    (tmp_path / "no.npz").write_text("something else")
    with pytest.raises(TraceError, match="is no file of masks"):
        MaskFile(tmp_path / "no.npz")
    assert [path.name for path in tmp_path.iterdir()] == ["no.npz"]


def test_masks_spare_what_is_there(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Another file, and a folder that is called as an unfinished one might be; older masks are replaced."""
    (tmp_path / "t.npz").write_text("a trace, say")
    with pytest.raises(OutputError, match="exists and holds no masks; name another file"):
        MaskWriter(tmp_path / "t.npz")
    (tmp_path / "m.npz.partial").mkdir()
    (tmp_path / "m.npz.partial" / "mine").write_text("mine")
    for policy in ("dip", "dip-ca"):
        run(checkpoints["llama"], {policy: {}}, MaskWriter(tmp_path / "m.npz"))
        assert MaskFile(tmp_path / "m.npz").policy.name == policy
    assert (tmp_path / "m.npz.partial" / "mine").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.npz", "m.npz.partial", "t.npz"]
