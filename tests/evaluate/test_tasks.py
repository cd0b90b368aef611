"""Tasks in the closed loop: lm-eval's own values where nothing is cut, and a token-by-token twin where something is."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="tasks need the extra `record`")
pytest.importorskip("lm_eval", reason="tasks need the extra `tasks`")

from hwsim.demand import Demand
from hwsim.errors import HwsimError, ModelError, SettingError
from hwsim.evaluate import Candidate, TaskSettings, evaluate_tasks, generate
from hwsim.evaluate.generation import Stepper
from hwsim.evaluate.harness import build_requests, load_tasks
from hwsim.evaluate.masking import ClosedLoop
from hwsim.evaluate.requests import Passes, masked_model, plan_requests
from hwsim.metrics import TaskEvaluation
from hwsim.model import Bits
from hwsim.placement import GroupPlan, place, plan_groups
from hwsim.plugins import EVICTIONS, POLICIES
from hwsim.record.extras import libraries
from hwsim.record.hooks import find_layers
from hwsim.record.loading import read_structure
from hwsim.record.sources import find_source
from hwsim.simulation import Settings
from tests.conftest import flat_profile
from tests.record.conftest import make_model, make_tokenizer, save

TASKS = Path(__file__).parent / "tasks"
SCORED = ("persuasion_endings", "persuasion_letters", "persuasion_sentences")
ALL = (*SCORED, "persuasion_names")
QUESTIONS = 4  # of each task


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What datasets makes of data files stays in the tests' folder."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path_factory.getbasetemp() / "datasets"))


def run(
    model: Path, names: tuple[str, ...], policies: dict[str, dict[str, Any]], eviction: str = "lfu", **options: Any
) -> list[TaskEvaluation]:
    candidates = [Candidate(name, POLICIES.make(name, fields)[1]) for name, fields in policies.items()]
    tasks = TaskSettings(names, **({"folder": TASKS, "limit": QUESTIONS} | options))
    rule = EVICTIONS.make(eviction)[1]
    return evaluate_tasks(str(model), tasks, flat_profile(), candidates, rule, settings=Settings(dram="70%"))


def requests_of(*names: str) -> dict[str, list[Any]]:
    found = load_tasks(list(names), TASKS, None, lambda done, total: None)
    return build_requests(found, QUESTIONS)[0]


def loop_of(
    model: Any, folder: Path, policy: str, sink: Any = None, fields: dict[str, Any] | None = None
) -> tuple[ClosedLoop, tuple[GroupPlan, ...]]:
    """A policy with caches that evict, on a model."""
    shape = read_structure(find_source(str(folder)), libraries()).shape
    made = POLICIES.make(policy, fields or {})[1]
    plans = place(plan_groups(made.groups(shape), shape, Bits()), shape, Bits(), "70%", 64, 0).groups
    layers = find_layers(model, shape.num_hidden_layers)[1]
    rule = EVICTIONS.make("lfu")[1]
    return ClosedLoop(layers, shape, made, plans, rule, name=policy, seed=3, sink=sink), plans


def silent() -> None:
    return None


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
    shape = read_structure(find_source(str(checkpoints[family])), libraries()).shape
    layers, rule = find_layers(model, 3)[1], EVICTIONS.make("lru")[1]
    loop = ClosedLoop(layers, shape, POLICIES.make("dense")[1], (), rule, name="dense")
    ours = masked_model(model, tokenizer, Passes(loop, dense_prompt=False, tell=silent))
    assert set(requests) == {"loglikelihood", "loglikelihood_rolling", "generate_until"}
    for method, instances in requests.items():
        assert getattr(ours, method)(instances) == getattr(own, method)(instances), method


# ---------------------------------------------------------------------- the twin


class Told:
    """Masks by (layer, group), of all tokens one after the other."""

    def __init__(self) -> None:
        self.masks: dict[tuple[int, str], list[np.ndarray]] = {}

    def __call__(self, layer: int, group: str, first: int, masks: np.ndarray) -> None:
        self.masks.setdefault((layer, group), []).append(masks.copy())

    def all(self) -> dict[tuple[int, str], np.ndarray]:
        return {key: np.concatenate(masks) for key, masks in self.masks.items()}


def log_chances(rows: list[Any]) -> np.ndarray:
    logits = np.stack([row.double().numpy() for row in rows])
    shifted = logits - logits.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def same(told: Told, twin: Told, demand: Demand, stepped: list[Demand]) -> None:
    ours, theirs = told.all(), twin.all()
    assert ours.keys() == theirs.keys()
    for key, masks in ours.items():
        np.testing.assert_array_equal(masks, theirs[key], str(key))
    np.testing.assert_array_equal(demand.requests, np.concatenate([each.requests for each in stepped]))
    np.testing.assert_array_equal(demand.hits, np.concatenate([each.hits for each in stepped]))
    assert 0 < demand.hits.sum() < demand.requests.sum()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "policy"), [("llama", "dip-ca"), ("phi3", "dip-ca"), ("opt", "noisy-oracle")])
def test_scores_are_those_of_token_by_token(family: str, policy: str, checkpoints: dict[str, Path]) -> None:
    """The same masks, hits and log-likelihoods as a decoder that reads each request alone, one token at a time."""
    import torch

    told, twin = Told(), Told()
    model, requests = make_model(family), requests_of(*SCORED)
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
    same(told, twin, passes.demand(), stepper.demands)

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

    told, twin = Told(), Told()
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
    same(told, twin, passes.demand(), stepper.demands)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("policy", ["dip-ca"])
def test_texts_after_a_dense_prompt_are_those_of_generate(policy: str, checkpoints: dict[str, Path]) -> None:
    folder, model = checkpoints["llama"], make_model("llama")
    instances = requests_of("persuasion_names")["generate_until"]
    shape = read_structure(find_source(str(folder)), libraries()).shape
    made, rule = POLICIES.make(policy)[1], EVICTIONS.make("lfu")[1]
    for instance in instances:
        prompt = instance.args[0]
        written = generate(
            str(folder), prompt, flat_profile(), Candidate(policy, made), rule, 8, settings=Settings(dram="70%")
        )  # fmt: skip
        longest = len(make_tokenizer().encode(prompt)) + 7
        plans = place(plan_groups(made.groups(shape), shape, Bits()), shape, Bits(), "70%", longest, 0).groups
        loop = ClosedLoop(find_layers(model, 3)[1], shape, made, plans, rule, name=policy)
        passes = Passes(loop, dense_prompt=True, tell=silent)
        (text,) = masked_model(model, make_tokenizer(), passes).generate_until([instance])
        assert text == written.text.split(".")[0]
        if "." not in written.text:
            assert written.result is not None
            assert int(passes.demand().requests.sum()) == written.result.unit_requests
            assert int(passes.demand().hits.sum()) == written.result.unit_hits


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
    names, candidate = ("persuasion_sentences", "persuasion_names"), Candidate("dip", POLICIES.make("dip")[1])
    tasks, rule = TaskSettings(names, TASKS, limit=2), EVICTIONS.make("lfu")[1]

    def ask(model: Path, lora: Path | None) -> dict[str, Any]:
        settings = Settings(dram="70%", lora=lora, lora_merged=lora is not None)
        return evaluate_tasks(str(model), tasks, flat_profile(), [candidate], rule, settings=settings)[0].lm_eval

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


# ---------------------------------------------------------------------- what is refused


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A copy of the tasks, to be changed."""
    shutil.copytree(TASKS, tmp_path / "mine")
    yield tmp_path / "mine"


@pytest.mark.filterwarnings("ignore")
def test_what_is_refused(checkpoints: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(kind: type[HwsimError], message: str, *names: str, **options: Any) -> None:
        with pytest.raises(kind, match=message) as caught:
            run(checkpoints["llama"], names, {"dip": {}}, **({"folder": folder} | options))
        assert "\n" not in str(caught.value)

    names = (folder / "names.yaml").read_text()
    (folder / "endless.yaml").write_text(names.replace("_names", "_endless").replace("_toks: 8", "_toks: 500"))
    (folder / "beams.yaml").write_text(names.replace("_names", "_beams").replace("do_sample: false", "num_beams: 2"))
    (folder / "lost.yaml").write_text(names.replace("_names", "_lost").replace("names.jsonl", "none.jsonl"))
    (folder / "wrong.yaml").write_text(names.replace("_names", "_wrong").replace("generate_until", "guess"))
    refused(SettingError, "--tasks names no task")
    refused(SettingError, "--limit 0: must be at least 1", "persuasion_names", limit=0)
    refused(SettingError, "nowhere: is no folder; give one with", "persuasion_names", folder=folder / "nowhere")
    refused(
        SettingError, "the future cannot serve persuasion_names, which generates", "persuasion_names", eviction="belady"
    )
    refused(SettingError, "none of these does; leave it out", "persuasion_letters", dense_prompt=True)
    refused(SettingError, "_endless: generates up to 500 tokens, the model reads at most 256", "persuasion_endless")
    refused(ModelError, "several texts at once, such as beams", "persuasion_beams")
    refused(ModelError, r"--tasks persuasion_lost: cannot be loaded: FileNotFoundError", "persuasion_lost")
    refused(ModelError, r"--tasks persuasion_wrong: cannot be loaded", "persuasion_wrong")
    with monkeypatch.context() as patched:

        def unreachable(*args: Any, **options: Any) -> None:
            raise ConnectionError("Couldn't reach 'some/set' on the Hub")

        patched.setattr("datasets.load_dataset", unreachable)
        refused(SettingError, "its data set is not on this machine and the hub cannot be reached", "persuasion_names")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "lm_eval", None)
        refused(
            SettingError,
            r"needs lm-eval, which is not installed; install it with: pip install 'hwsim\[tasks\]'",
            "persuasion_names",
        )


@pytest.mark.filterwarnings("ignore")
def test_names_that_are_unknown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """lm-eval's own thousands of tasks are left out here: reading them takes many seconds."""
    from lm_eval.tasks import TaskManager

    made = TaskManager.__init__

    def without(self: Any, *args: Any, **options: Any) -> None:
        made(self, *args, **(options | {"include_defaults": False}))

    monkeypatch.setattr(TaskManager, "__init__", without)

    def refused(name: str, path: Path | None) -> str:
        with pytest.raises(SettingError) as caught:
            load_tasks([name], path, None, lambda done, total: None)
        return str(caught.value)

    assert "did you mean 'persuasion_names'?" in refused("persuasion_name", folder)
    assert "mine has persuasion_endings, persuasion_letters, persuasion_names" in refused("zzz", folder)
    assert "lm-eval has no such task; name a folder with --tasks-path" in refused("zzz", None)
    (folder / "broken.yaml").write_text("task: [mine\n")
    assert "no such task; broken.yaml cannot be read: while parsing" in refused("zzz", folder)


def test_command(checkpoints: dict[str, Path], tmp_path: Path, hwsim: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path.parent / "datasets"))
    common = ("eval", "--model", checkpoints["llama"], "--hw", "pixel8", "--dram", "60%", "--policy", "dip,dip-ca")
    mine = ("--tasks", "persuasion_endings,persuasion_names", "--tasks-path", TASKS, "--limit", 2)
    done = hwsim(*common, *mine, "--json", "t.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == "Result written to t.json\n"
    assert done.stdout.count("(no mask)") == 3
    for text in ("persuasion_endings", "acc_norm", "exact_match", "against", "tokens/s", "hit"):
        assert text in done.stdout
    first, second = json.loads((tmp_path / "t.json").read_text())["results"]
    assert first["lm_eval"]["dense_results"] == second["lm_eval"]["dense_results"]
    assert [path.name for path in tmp_path.iterdir()] == ["t.json"]
    for options, message in (
        ((*mine, "--context", 24), "--context: does not go with --tasks"),
        ((*mine, "--save-masks", "m.npz"), "--save-masks: does not go with --tasks"),
        (("--limit", 2), "--limit: is for --tasks"),
    ):
        refused = hwsim(*common, *options)
        assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
        assert message in refused.stderr
