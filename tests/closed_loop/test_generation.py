"""Real generation: the same masks as the layer-by-layer evaluation, the model's own text where nothing is cut."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="generation needs the extra `record`")

from hwsim.closed_loop.generation import Stepper
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.errors import SettingError
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.record import Settings as Reading
from hwsim.record import record
from hwsim.simulation.settings import Settings
from hwsim.testing.drive import MaskCollector
from hwsim.trace import Trace
from tests.closed_loop.loops import candidate, generate, masking_of, rule
from tests.conftest import flat_profile
from tests.record.conftest import layers_in, make_model, make_tokenizer
from tests.runs import evaluate


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen2", "gemma", "phi3", "opt"])
@pytest.mark.parametrize("policy", ["dip-ca", "noisy-oracle"])
def test_token_by_token_gives_the_masks_of_the_evaluation(
    family: str, policy: str, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    reading, model, made = Reading(tokens=40, context=40, prompt=5), str(checkpoints[family]), candidate(policy)
    settings, writer = Settings(dram="70%", seed=3), MaskWriter(tmp_path / "m.npz")
    evaluate(model, "persuasion", flat_profile(), [made], rule(), reading, settings, masks=writer)
    saved = MaskFile(tmp_path / "m.npz")
    record(tmp_path / "t.npz", model, settings=reading)
    with Trace(tmp_path / "t.npz") as trace:
        ids, shape = trace.tokens().tolist(), trace.model  # type: ignore[union-attr]
    import torch

    running, stepped = make_model(family), MaskCollector()
    masking = masking_of(made.policy, shape, 40, settings, name=policy)
    stepper = Stepper(running, torch, ClosedLoop(layers_in(running), masking, [stepped]))
    stepper.prefill(ids[:5])
    for token in ids[5:]:
        stepper.step(token)
    masks = stepped.masks_of
    assert masks.keys() == {(plan.layer, plan.name) for plan in masking.plans}
    for plan in masking.plans:
        ours = masks[plan.layer, plan.name]
        assert len(ours) == 35
        np.testing.assert_array_equal(ours, saved._read(plan, 35), f"{plan.layer} {plan.name}")


def test_dense_text_is_the_models_own(checkpoints: dict[str, Path]) -> None:
    import torch

    prompt, pieces = "Anne hoped she had", []
    settings = Settings(dram="50%")
    written = generate(checkpoints["llama"], prompt, candidate("dense"), 20, settings, on_text=pieces.append)
    ids = torch.as_tensor([make_tokenizer()(prompt)["input_ids"]])
    with torch.no_grad():
        own = make_model("llama").generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    assert written.ids == own
    assert "".join(pieces) == written.text
    assert written.result is not None
    assert written.result.tokens == len(own) - 1
    assert written.result.ttft_s is not None


@pytest.mark.parametrize("memory", [None, 165_000], ids=["in memory", "layer by layer"])
@pytest.mark.parametrize("ends", [7, [1, 7], [7, 1], None], ids=str)
def test_a_text_ends_where_transformers_ends_it(
    ends: int | list[int] | None, memory: int | None, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """At each of the end tokens that the model's generation_config names; at the tokenizer's where it names none."""
    import torch
    import transformers

    prompt, folder = "Anne hoped she had", tmp_path / "m"
    shutil.copytree(checkpoints["llama"], folder)
    ids = torch.as_tensor([make_tokenizer()(prompt)["input_ids"]])
    own = make_model("llama").generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist()
    at = next(at for at in range(3, 20) if own[at] not in own[:at])
    ends = own[at] if ends == 7 else [own[at] if end == 7 else end for end in ends] if ends else None
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"eos_token_id": ends}))
    if ends is None:
        change_end(folder, make_tokenizer().convert_ids_to_tokens(own[at]))
    reading = Reading(max_memory=memory)
    written = generate(folder, prompt, candidate("dense"), 20, Settings(dram="50%"), reading=reading)
    assert written.ids == own[: at + 1]
    if ends is not None:
        with torch.no_grad():
            model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
            assert model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :].tolist() == written.ids


def change_end(folder: Path, token: str) -> None:
    """Make another token the tokenizer's end of a text."""
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token": token}))


def test_drawn_text_follows_the_seed(checkpoints: dict[str, Path]) -> None:
    def draw(seed: int) -> list[int]:
        settings = Settings(dram="60%", seed=seed)
        return generate(checkpoints["opt"], "Anne", candidate("dip"), 12, settings, "lru", temperature=1.0).ids

    assert draw(1) == draw(1)
    assert draw(1) != draw(2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tokens": 1}, "--tokens 1: must be at least 2"),
        ({"tokens": 1000}, "llama reads at most 256 tokens"),
        ({"eviction": "belady"}, "must know the future cannot serve a generation"),
        ({"prompt": ""}, "--prompt: is empty"),
    ],
)
def test_what_is_refused(options: dict[str, Any], message: str, checkpoints: dict[str, Path]) -> None:
    wanted: dict[str, Any] = {"prompt": "Anne", "candidate": candidate("dip"), "tokens": 5}
    with pytest.raises(SettingError, match=message):
        generate(checkpoints["llama"], **(wanted | options))


def test_commands(checkpoints: dict[str, Path], tmp_path: Path, hwsim: Any) -> None:
    common = ("--model", checkpoints["llama"], "--hw", "pixel8", "--dram", "60%", "--policy")
    done = hwsim("generate", *common, "dip", "--prompt", "Anne hoped", "--tokens", 8, "--json", "g.json")
    assert done.returncode == 0, done.stderr
    assert "dip on Google Pixel 8, simulated:" in done.stdout
    assert json.loads((tmp_path / "g.json").read_text())["tokens"] == 7
    done = hwsim("eval", *common, "dip,dip-ca", "--tokens", 48, "--context", 24, "--json", "e.json")
    assert done.returncode == 0, done.stderr
    assert "top-1" in done.stdout
    first, second = json.loads((tmp_path / "e.json").read_text())["results"]
    assert first["tokens_scored"] == second["tokens_scored"] == 46
    assert first["dense_perplexity"] == second["dense_perplexity"]
    refused = hwsim("eval", *common, "dipp")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "did you mean 'dip'" in refused.stderr


def test_a_generation_takes_pinned_and_warm_units(checkpoints: dict[str, Path], tmp_path: Path, hwsim: Any) -> None:
    common = ("--model", checkpoints["llama"], "--hw", "pixel8", "--dram", "70%", "--policy", "dip")
    done = hwsim("record", "--model", checkpoints["llama"], "-o", "t.npz", "--tokens", 48, "--context", 24)
    assert done.returncode == 0, done.stderr
    done = hwsim("replay", "t.npz", *common[2:], "--save-cache", "c.npz")
    assert done.returncode == 0, done.stderr
    write = ("generate", *common, "--prompt", "Anne hoped", "--tokens", 8)
    found = {}
    for name, more in (("cold", ()), ("warm", ("--warm", "c.npz")), ("pinned", ("--pin", "c.npz"))):
        done = hwsim(*write, *more, "--json", f"{name}.json")
        assert done.returncode == 0, done.stderr
        found[name] = json.loads((tmp_path / f"{name}.json").read_text())
    assert found["cold"]["unit_hits"] < found["warm"]["unit_hits"]
    assert found["warm"]["provenance"]["settings"]["warm"]["name"] == "c.npz"
    assert found["pinned"]["provenance"]["settings"]["pinned"]["name"] == "c.npz"
    done = hwsim(*write, "--admission", "bypass", "--cache-scope", "layer")
    assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
    assert "--admission bypass: does not go with --cache-scope layer" in done.stderr


def test_saved_masks_are_replayed_by_the_command(checkpoints: dict[str, Path], tmp_path: Path, hwsim: Any) -> None:
    common = ("--hw", "pixel8", "--dram", "60%")
    run = ("eval", "--model", checkpoints["llama"], *common, "--policy", "dip-ca", "--tokens", 48, "--context", 24)
    assert hwsim(*run, "--save-masks", "m.npz", "--json", "e.json").returncode == 0
    done = hwsim("replay", "m.npz", *common, "--json", "r.json")
    assert done.returncode == 0, done.stderr
    assert "dip-ca" in done.stdout
    loop, again = (json.loads((tmp_path / name).read_text()) for name in ("e.json", "r.json"))
    for field in ("unit_hits", "flash_bytes", "dram_bytes", "time_s", "groups", "throughput_tok_s"):
        assert loop[field] == again[field], field
    for wrong, message in (
        (("replay", "m.npz", *common, "--policy", "dip"), "holds masks that were decided"),
        ((*run, "--save-masks", "e.json", "--json", "e.json"), "the command reads it"),
    ):
        done = hwsim(*wrong)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done.stderr
        assert message in done.stderr
