"""Tasks in the closed loop: what is read and counted, twice the same, without a network, with examples and adapters."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch", reason="tasks need the extra `record`")
pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")

from hwsim.closed_loop import TaskSettings, evaluate_tasks
from hwsim.closed_loop.requests import Passes, masked_model, plan_requests
from hwsim.simulation.settings import Settings
from tests.closed_loop.loops import candidate
from tests.closed_loop.taskruns import ALL, SCORED, TASKS, conditions, loop_of, own_cache, requests_of, run, silent
from tests.record.conftest import make_model, make_tokenizer, save

__all__ = ["own_cache"]


# ---------------------------------------------------------------------- what is counted


@pytest.mark.filterwarnings("ignore")
def test_everything_is_counted_once(checkpoints: dict[str, Path]) -> None:
    """Requests that read the same tokens once; masks of every token of the others; the same tokens for every policy."""
    dense, dip, aware = run(checkpoints["llama"], SCORED, {"dense": {}, "dip": {}, "dip-ca": {}})
    tokenizer, read = make_tokenizer(), set()
    requests = requests_of(*SCORED)
    for instance in requests["loglikelihood"]:
        read.add(tuple(tokenizer.encode("".join(instance.args))[:-1]))
    texts = [
        (tokenizer.bos_token_id, *tokenizer.encode(each.args[0])[:-1]) for each in requests["loglikelihood_rolling"]
    ]
    tokens = sum(map(len, read)) + sum(map(len, texts))
    assert len(read) < len(requests["loglikelihood"])  # letters of one question share a pass
    for result in (dense, dip, aware):
        assert result.tokens == tokens
        assert result.unit_requests == sum(group.requests for group in result.groups)
        assert result.unit_hits == sum(group.hits for group in result.groups)
        assert result.kv_cache_bytes == dense.kv_cache_bytes
    kept = {group.group: divmod(group.requests, tokens) for group in dip.groups}
    assert all(rest == 0 for _, rest in kept.values())
    assert dip.unit_requests == aware.unit_requests == 3 * tokens * sum(k for k, _ in kept.values())
    assert dip.mlp_density == aware.mlp_density == pytest.approx(0.5, abs=0.02)
    assert dense.lm_eval["results"] == dense.lm_eval["dense_results"] == aware.lm_eval["dense_results"]
    assert (dense.hit_rate, dense.mlp_density) == (None, 1.0)
    assert aware.unit_hits > dip.unit_hits


@pytest.mark.filterwarnings("ignore")
def test_the_plan_holds(checkpoints: dict[str, Path]) -> None:
    """Passes and the longest sequence are known before the model runs."""
    requests, model = requests_of(*ALL), make_model("llama")
    plan = plan_requests(model, make_tokenizer(), requests)
    loop, _ = loop_of(model, checkpoints["llama"], "dip")
    passes = Passes(loop, dense_prompt=False, tell=silent)
    ours = masked_model(model, make_tokenizer(), passes)
    for method, instances in requests.items():
        getattr(ours, method)(instances)
    assert plan.passes == len(passes.sequences)
    assert plan.longest == max(sequence.tokens for sequence in passes.sequences)
    assert (plan.cut, plan.generates) == (0, {"persuasion_names"})


@pytest.mark.filterwarnings("ignore")
def test_twice_is_the_same_and_names_no_path(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The same bytes, from another folder, without a network, with lm-eval's prints and bars kept away."""
    shutil.copytree(TASKS, tmp_path / "elsewhere")
    one, other = (
        run(checkpoints["llama"], ALL[1:], {"dip-ca": {}}, folder=folder, limit=2)[0]
        for folder in (TASKS, tmp_path / "elsewhere")
    )
    assert one.to_json() == other.to_json()
    assert str(TASKS.parent) not in one.to_json()
    assert one.lm_eval["n-samples"]["persuasion_letters"] == {"original": 20, "effective": 2}
    assert "first 2 questions" in one.notes[0]


@pytest.mark.filterwarnings("ignore")
def test_local_tasks_need_no_network(
    checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def refuse(*args: Any, **options: Any) -> None:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.chdir(tmp_path)
    run(checkpoints["llama"], ALL, {"dip": {}}, limit=1)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore")
def test_examples_in_front(checkpoints: dict[str, Path]) -> None:
    names = ("persuasion_endings", "persuasion_letters")
    zero, two = (run(checkpoints["llama"], names, {"dip": {}}, limit=2, num_fewshot=n)[0] for n in (None, 2))
    assert (zero.lm_eval["n-shot"]["persuasion_endings"], two.lm_eval["n-shot"]["persuasion_endings"]) == (0, 2)
    assert two.tokens > zero.tokens
    assert "Task persuasion_letters sets num_fewshot to 0, and stays without examples." in two.notes
    first, second = (each.provenance["trace"]["provenance"]["requests_sha256"] for each in (zero, two))
    assert first["persuasion_letters"] == second["persuasion_letters"]
    assert first["persuasion_endings"] != second["persuasion_endings"]


@pytest.mark.filterwarnings("ignore")
def test_an_adapter_is_on_while_tokens_are_masked(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """The policy's values are those of a model that the adapter was merged into; the dense ones know nothing of it."""
    peft = pytest.importorskip("peft")
    fields = peft.LoraConfig(r=2, target_modules=["gate_proj", "up_proj", "down_proj"], init_lora_weights=False)
    wrapped = peft.get_peft_model(make_model("llama"), fields)
    wrapped.save_pretrained(tmp_path / "adapter")
    merged = save(wrapped.merge_and_unload(), tmp_path / "merged")
    tasks = TaskSettings(("persuasion_sentences", "persuasion_names"), TASKS, limit=2)

    def ask(model: Path, lora: Path | None) -> dict[str, Any]:
        settings = Settings(dram="70%", lora=lora, lora_merged=lora is not None)
        return evaluate_tasks(str(model), tasks, conditions(settings), [candidate("dip")])[0].lm_eval

    without, carried, whole = (
        ask(checkpoints["llama"], None),
        ask(checkpoints["llama"], tmp_path / "adapter"),
        ask(merged, None),
    )
    assert carried["dense_results"] == without["dense_results"]
    assert carried["results"]["persuasion_names"] == whole["results"]["persuasion_names"]
    ours, theirs, plain = (
        each["results"]["persuasion_sentences"]["bits_per_byte,none"] for each in (carried, whole, without)
    )
    assert ours == pytest.approx(theirs, rel=1e-4)
    assert ours != pytest.approx(plain, rel=1e-3)


TALKS = """
import numpy as np
from hwsim.policy import Group, Policy

class Talks(Policy):
    "Prints."
    def groups(self, model):
        return [Group("down", axis="neuron", slices=["down.column"], keep=0.5, needs=["glu"])]
    def score(self, ctx):
        print("scoring")
        return np.abs(ctx.signals["glu"])
"""


@pytest.mark.filterwarnings("ignore")
def test_a_policy_that_prints_is_heard(
    checkpoints: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "talks.py").write_text(TALKS)
    run(checkpoints["llama"], ("persuasion_sentences",), {str(tmp_path / "talks.py"): {}}, limit=1)
    out, err = capfd.readouterr()
    assert (set(out.split()), err) == ({"scoring"}, "")
