"""Tasks in the closed loop: lm-eval's own values where nothing is cut, and a token-by-token twin where something is."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="tasks need the extra `record`")
pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")

from hwsim.closed_loop.generation import Stepper
from hwsim.closed_loop.requests import Passes, masked_model
from hwsim.masking.counts import Counts
from hwsim.simulation.settings import Settings
from hwsim.testing.drive import MaskCollector
from tests.closed_loop.loops import candidate, generate
from tests.closed_loop.taskruns import ALL, QUESTIONS, SCORED, TASKS, loop_of, own_cache, requests_of, run, silent
from tests.record.conftest import make_model, make_tokenizer

__all__ = ["own_cache"]


# ---------------------------------------------------------------------- lm-eval's own values


def own_values(family: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Of lm-eval's own class and functions, without anything of ours in the model's way."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    with contextlib.chdir(TASKS):
        loaded = TaskManager(include_path=str(TASKS), include_defaults=False).load(list(names))
    own = HFLM(pretrained=make_model(family), tokenizer=make_tokenizer(), batch_size=1)
    return evaluate(lm=own, task_dict=loaded, limit=QUESTIONS, log_samples=False)["results"]  # type: ignore[index]


@pytest.mark.filterwarnings("ignore")  # of lm-eval and of what it imports
@pytest.mark.parametrize("family", ["llama"])
def test_dense_values_are_lm_evals_own(family: str, checkpoints: dict[str, Path]) -> None:
    """Exactly; and those of a policy that keeps everything, whether its caches hold everything or not."""
    (whole,) = run(checkpoints[family], ALL, {"dip": {"density": 1}})
    own = own_values(family, ALL)
    assert set(own) == set(ALL)
    assert whole.lm_eval["dense_results"] == own
    assert whole.lm_eval["results"]["persuasion_names"] == own["persuasion_names"]
    for task in SCORED:
        for key, value in own[task].items():
            wanted = value if isinstance(value, str) else pytest.approx(value, rel=1e-6)
            assert whole.lm_eval["results"][task][key] == wanted, (task, key)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["phi3", "opt"])
def test_dense_answers_are_lm_evals_own(family: str, checkpoints: dict[str, Path]) -> None:
    """Every single one, bit for bit."""
    from lm_eval.models.huggingface import HFLM

    requests, model, tokenizer = requests_of(*ALL), make_model(family), make_tokenizer()
    own = HFLM(pretrained=make_model(family), tokenizer=make_tokenizer(), batch_size=1)
    loop, plans = loop_of(model, checkpoints[family], "dense")
    assert not plans
    ours = masked_model(model, tokenizer, Passes(loop, dense_prompt=False, tell=silent))
    assert set(requests) == {"loglikelihood", "loglikelihood_rolling", "generate_until"}
    for method, instances in requests.items():
        assert getattr(ours, method)(instances) == getattr(own, method)(instances), method


# ---------------------------------------------------------------------- the twin


def log_chances(rows: list[Any]) -> np.ndarray:
    logits = np.stack([row.double().numpy() for row in rows])
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def same(told: MaskCollector, twin: MaskCollector, counts: Counts, stepped: list[Counts]) -> None:
    ours, theirs = told.masks_of, twin.masks_of
    assert ours.keys() == theirs.keys()
    for key, masks in ours.items():
        np.testing.assert_array_equal(masks, theirs[key], str(key))
    np.testing.assert_array_equal(counts.requests, np.concatenate([each.requests for each in stepped]))
    np.testing.assert_array_equal(counts.hits, np.concatenate([each.hits for each in stepped]))
    assert 0 < counts.hits.sum() < counts.requests.sum()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "policy"), [("llama", "dip-ca"), ("phi3", "dip-ca"), ("opt", "noisy-oracle")])
def test_scores_are_those_of_token_by_token(family: str, policy: str, checkpoints: dict[str, Path]) -> None:
    """The same masks, hits and log-likelihoods as a decoder that reads each request alone, one token at a time."""
    import torch

    told, twin = MaskCollector(), MaskCollector()
    model, requests = make_model(family), requests_of(*SCORED, questions=2)  # a decoder takes its time
    loop, plans = loop_of(model, checkpoints[family], policy, told)
    assert any(plan.capacity < plan.units for plan in plans)
    passes = Passes(loop, dense_prompt=False, tell=silent)
    ours = masked_model(model, make_tokenizer(), passes)
    read: list[tuple[int, ...]] = []  # what the model read, in its order
    hook = model.register_forward_pre_hook(lambda _, args: read.append(tuple(args[0][0].tolist())))
    scores = {method: getattr(ours, method)(instances) for method, instances in requests.items()}
    hook.remove()
    assert [sequence.tokens for sequence in passes.sequences] == [len(ids) for ids in read]

    again = make_model(family)
    stepper = Stepper(again, torch, loop_of(again, checkpoints[family], policy, twin)[0])
    logits = {}
    for number, ids in enumerate(read):
        stepper._loop.begin(number)
        stepper._past = None
        logits[ids] = log_chances([stepper.step(token) for token in ids])
    same(told, twin, passes.counts(), stepper.counts)

    tokenizer = make_tokenizer()
    for instance, (score, greedy) in zip(requests["loglikelihood"], scores["loglikelihood"], strict=True):
        context, end = instance.args
        whole, start = tokenizer.encode(context + end), tokenizer.encode(context)
        chances, wanted = logits[tuple(whole[:-1])][len(start) - 1 :], whole[len(start) :]
        assert score == pytest.approx(chances[np.arange(len(wanted)), wanted].sum(), abs=1e-4)
        assert greedy == (chances.argmax(-1).tolist() == wanted)
    for instance, score in zip(requests["loglikelihood_rolling"], scores["loglikelihood_rolling"], strict=True):
        wanted = tokenizer.encode(instance.args[0])
        chances = logits[tokenizer.bos_token_id, *wanted[:-1]]
        assert score == pytest.approx(chances[np.arange(len(wanted)), wanted].sum(), abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("family", ["llama"])
def test_texts_are_those_of_token_by_token(family: str, checkpoints: dict[str, Path]) -> None:
    """Greedy texts, every token of prompt and text masked."""
    import torch

    told, twin = MaskCollector(), MaskCollector()
    model, instances = make_model(family), requests_of("persuasion_names")["generate_until"]
    passes = Passes(loop_of(model, checkpoints[family], "dip-ca", told)[0], dense_prompt=False, tell=silent)
    texts = masked_model(model, make_tokenizer(), passes).generate_until(instances)

    again, tokenizer = make_model(family), make_tokenizer()
    stepper = Stepper(again, torch, loop_of(again, checkpoints[family], "dip-ca", twin)[0])
    expected = {}
    longest_first = sorted({each.args[0] for each in instances}, key=lambda text: (-len(tokenizer.encode(text)), text))
    for number, prompt in enumerate(longest_first):
        stepper._loop.begin(number)
        stepper._past = None
        for token in tokenizer.encode(prompt):
            chances = stepper.step(token)
        made = [int(chances.argmax())]
        while len(made) < 8 and made[-1] != tokenizer.eos_token_id and "." not in tokenizer.decode(made):
            made.append(int(stepper.step(made[-1]).argmax()))
        expected[prompt] = tokenizer.decode(made, skip_special_tokens=True).split(".")[0]
    assert texts == [expected[each.args[0]] for each in instances]
    same(told, twin, passes.counts(), stepper.counts)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["dip-ca"])
def test_texts_after_a_dense_prompt_are_those_of_generate(policy: str, checkpoints: dict[str, Path]) -> None:
    folder, model = checkpoints["llama"], make_model("llama")
    instances = requests_of("persuasion_names")["generate_until"]
    for instance in instances:
        prompt = instance.args[0]
        written = generate(folder, prompt, candidate(policy), 8, Settings(dram="70%"))
        loop, _ = loop_of(model, folder, policy, longest=len(make_tokenizer().encode(prompt)) + 7, seed=0)
        passes = Passes(loop, dense_prompt=True, tell=silent)
        (text,) = masked_model(model, make_tokenizer(), passes).generate_until([instance])
        assert text == written.text.split(".")[0]
        if "." not in written.text:
            assert written.result is not None
            assert int(passes.counts().requests.sum()) == written.result.unit_requests
            assert int(passes.counts().hits.sum()) == written.result.unit_hits
