"""LoRA: the gradient against a plain twin, merging, and what an adapter weighs."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs the extra `train`")
pytest.importorskip("peft", reason="training needs the extra `train`")

from hwsim.closed_loop.carried import carry
from hwsim.closed_loop.generation import Stepper
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.model.shape import Bits
from hwsim.record import Settings as Reading
from hwsim.record import record
from hwsim.record.prepare import prepare
from hwsim.simulation.settings import Settings
from hwsim.testing.drive import MaskCollector
from hwsim.trace import Trace
from hwsim.train.trainer import Training
from tests.closed_loop.loops import candidate, generate, masking_of, rule
from tests.conftest import flat_profile
from tests.record.conftest import make_model, save
from tests.runs import evaluate, replay
from tests.train.lora import READING, adapters, judge, judge_all, train

__all__ = ["adapters"]


# ---------------------------------------------------------------------- what training does


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_it_comes_nearer_to_the_dense_model(family: str, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    longer = Training(tokens=1440, validation=96, context=24, batch=2, rank=8, learning_rate=1e-3, every=15)
    trained = train(tmp_path / "a", checkpoints[family], training=longer, fields={"density": 0.3})
    first, *others = trained.curve
    assert [look.step for look in trained.curve] == [0, 15, 30]
    assert [look.tokens for look in trained.curve] == [0, 720, 1440]
    assert min(look.kl for look in others) < first.kl
    assert trained.best == min(others, key=lambda look: look.kl).step
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_step_follows_the_gradient_of_the_divergence(checkpoints: dict[str, Path], monkeypatch: Any) -> None:
    """The loss in blocks gives the gradients of one plain KL divergence over all tokens."""
    import torch

    from hwsim.record.runner import Runner
    from hwsim.train.trainer import backward

    class Parts:
        torch = __import__("torch")

    runner = Runner(make_model("llama"), Parts())  # type: ignore[arg-type]
    monkeypatch.setattr("hwsim.record.runner._LOGITS", 400 * 5)  # five tokens at a time
    dense, start = torch.randn(2, 9, 32), torch.randn(2, 9, 32)
    grads = []
    for how in ("blocks", "plain"):
        hidden = start.clone().requires_grad_()
        if how == "blocks":
            loss = backward(runner, hidden * 1.5, dense)
        else:
            ours, wanted = (torch.log_softmax(runner.logits(each), -1) for each in (hidden * 1.5, dense))
            plain = (wanted.exp() * (wanted - ours)).sum(-1).mean()
            plain.backward()
            assert loss == pytest.approx(float(plain.detach()), rel=1e-5)
        assert hidden.grad is not None
        grads.append(hidden.grad)
    torch.testing.assert_close(grads[0], grads[1], rtol=1e-4, atol=1e-7)


def test_an_untrained_adapter_changes_nothing(
    checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(adapters["llama"], tmp_path / "zero")
    weights = load_file(tmp_path / "zero" / "adapter_model.safetensors")
    for name, each in weights.items():
        if ".lora_B." in name:
            each.zero_()
    save_file(weights, tmp_path / "zero" / "adapter_model.safetensors")
    with_it, without = judge(checkpoints["llama"], tmp_path / "zero"), judge(checkpoints["llama"], None)
    assert with_it.perplexity == pytest.approx(without.perplexity, rel=1e-6)
    assert with_it.unit_hits == without.unit_hits or with_it.cache_bytes < without.cache_bytes


@pytest.mark.parametrize("family", ["llama", "phi3", "opt"])
def test_it_acts_as_if_it_were_merged(
    family: str, checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    """y = (m x) W + (m x) A B is y = (m x)(W + A B): a model with the product in its weights is masked to the same losses."""
    import peft

    policies = ("dip", "dip-ca", "noisy-oracle")
    model = peft.PeftModel.from_pretrained(make_model(family), adapters[family]).merge_and_unload()
    expected = judge_all(save(model, tmp_path / "merged"), None, policies)
    results = judge_all(checkpoints[family], adapters[family], policies, merged=True)
    dense = judge(checkpoints[family], None).dense_perplexity
    for policy, carried, merged in zip(policies, results, expected, strict=True):
        assert carried.perplexity == pytest.approx(merged.perplexity, rel=1e-4), policy
        assert (carried.unit_hits, carried.flash_bytes) == (merged.unit_hits, merged.flash_bytes), policy
        assert carried.dense_perplexity == dense, policy


def test_windows_of_a_batch_are_judged_as_single_ones(checkpoints: dict[str, Path], adapters: dict[str, Path]) -> None:
    one, two = (judge(checkpoints["llama"], adapters["llama"], "dip-ca", batch=batch) for batch in (1, 2))
    assert one.perplexity == pytest.approx(two.perplexity, rel=1e-6)
    assert (one.unit_requests, one.unit_hits, one.tokens) == (two.unit_requests, two.unit_hits, two.tokens)


def test_prompts_are_read_without_it(checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path) -> None:
    """The prompt's keys and values are the dense model's: masked tokens see them in eval as in a generation."""
    model, lora = checkpoints["llama"], adapters["llama"]
    reading, settings = Reading(tokens=40, context=20, prompt=7), Settings(dram="60%", lora=lora)
    writer = MaskWriter(tmp_path / "m.npz")
    loop = evaluate(
        model, "persuasion", flat_profile(), [candidate("dip")], rule(), reading, settings, masks=writer, batch=2
    )[0]  # fmt: skip
    masks = MaskFile(tmp_path / "m.npz")
    ready = prepare(str(model), "persuasion", reading, lambda *_: None)
    loaded = ready.load(lambda *_: None)
    carried = carry(loaded, lora, "model")
    assert carried is not None
    masking, told = masking_of(candidate("dip").policy, ready.header.model, 20, settings, name="dip"), MaskCollector()
    with_masks = ClosedLoop(carried.layers, masking, [told])
    losses = []
    for window in ready.ids.reshape(-1, 20):
        stepper = Stepper(loaded.model, ready.libraries.torch, with_masks, carried)
        stepper.prefill(window[:7].tolist())
        for at in range(7, 19):
            logits = stepper.step(int(window[at]))
            losses.append(-float(logits.log_softmax(-1)[int(window[at + 1])]))
        stepper.step(int(window[19]))
    assert loop.perplexity == pytest.approx(np.exp(np.mean(losses)), rel=1e-5)
    for plan in masking.plans:
        np.testing.assert_array_equal(masks._read(plan, 26), told.masks_of[plan.layer, plan.name])


def test_it_writes_token_by_token_too(checkpoints: dict[str, Path], adapters: dict[str, Path]) -> None:
    """Text under the carried adapter is that of the layer-by-layer run: each token is the best of the one before."""
    settings = Settings(dram="60%", lora=adapters["llama"])
    written = generate(checkpoints["llama"], "Anne", candidate("dip"), 12, settings, "lru")
    assert written.result is not None
    assert written.result.provenance["adapter"]["rank"] == 4
    assert written.ids


# ---------------------------------------------------------------------- what it weighs


def test_its_bytes_are_resident_and_its_parameters_count(
    checkpoints: dict[str, Path], adapters: dict[str, Path], tmp_path: Path
) -> None:
    record(tmp_path / "t.npz", str(checkpoints["llama"]), settings=READING)
    parameters = 3 * 3 * 4 * (32 + 88)  # layers, matrices, rank, width
    with Trace(tmp_path / "t.npz") as trace:

        def run(policy: str, **fields: Any) -> Any:
            settings = Settings(dram="110%", **fields)
            return replay(trace, flat_profile(), candidate(policy).policy, rule(), settings)

        bare, own, merged = (
            run("dip"),
            run("dip", lora=adapters["llama"]),
            run("dip", lora=adapters["llama"], lora_merged=True),
        )
        dense = run("dense", lora=adapters["llama"])
        half = run("dip", lora=adapters["llama"], bits=Bits(adapter=8))
        assert "adapter" not in dense.provenance
        assert dense.mlp_density == 1
        assert dense.resident_bytes == run("dense").resident_bytes
    assert own.resident_bytes - bare.resident_bytes == 2 * parameters
    assert half.resident_bytes - bare.resident_bytes == parameters
    assert own.cache_bytes == bare.cache_bytes - 2 * parameters
    assert own.mlp_density - bare.mlp_density == pytest.approx(parameters / (3 * 3 * 32 * 88), abs=1e-12)
    assert own.dram_bytes > bare.dram_bytes
    assert merged.mlp_density == bare.mlp_density
    assert merged.groups == bare.groups
    assert own.provenance["adapter"]["parameters"] == parameters
    assert judge(checkpoints["llama"], adapters["llama"]).mlp_density == pytest.approx(own.mlp_density, abs=1e-12)
