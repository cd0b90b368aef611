"""The training of the experiments' mixture of experts: it continues bit-identically, and hwsim can read its model."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

torch = pytest.importorskip("torch", reason="needs the extra `record`")
transformers = pytest.importorskip("transformers", reason="needs the extra `record`")

from tests.conftest import REPOSITORY  # noqa: E402

BOOK = "It was a bright cold day in April,\nand the clocks were striking {}.\n\nNobody had wound them up.\n\n"


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(REPOSITORY / "experiments" / "results")
        yield importlib.import_module("moe_train")


@pytest.fixture
def texts(tmp_path: Path) -> tuple[list[Path], Path]:
    book, held_out = tmp_path / "book.txt", tmp_path / "held_out.txt"
    book.write_text("".join(BOOK.format(hour) for hour in range(200)))
    held_out.write_text("".join(f"The cat sat upon mat number {hour} and did not stir. " for hour in range(60)))
    return [book], held_out


@pytest.fixture
def plan(script: ModuleType) -> object:
    return script.Plan(vocabulary=300, hidden=16, layers=2, experts=4, used=2, width=8, heads=2, context=32, batch=2,
                       steps=4, warmup=2)  # fmt: skip


def weights(folder: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    return dict(model.state_dict())


def test_a_killed_training_continues_bit_identically(
    script: ModuleType, texts: tuple[list[Path], Path], plan: object, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert script.Training(*texts, whole, plan).run(every=2)
    assert not script.Training(*texts, parts, plan).run(every=2, until=3)  # one step beyond its checkpoint
    continued = script.Training(*texts, parts, plan)
    assert continued.step == 2
    assert continued.run(every=2)
    expected, got = weights(whole), weights(parts)
    assert expected.keys() == got.keys()
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    entries = [json.loads(line) for line in (parts / "training.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [2, 4]
    assert [sum(layer) for layer in entries[-1]["shares"]] == pytest.approx([2, 2], abs=1e-3)
    tokenizer = transformers.AutoTokenizer.from_pretrained(parts)
    assert tokenizer.is_fast
    assert tokenizer.decode(tokenizer("striking 7.")["input_ids"]) == "striking 7."
    assert not list(parts.glob("*partial*"))


def test_the_limit_of_time_ends_with_a_checkpoint(
    script: ModuleType, texts: tuple[list[Path], Path], plan: object, tmp_path: Path
) -> None:
    assert not script.Training(*texts, tmp_path / "out", plan).run(minutes=0)
    continued = script.Training(*texts, tmp_path / "out", replace(plan, steps=2))  # a shorter one goes on from it
    assert continued.step == 1
    assert continued.run()
    assert continued.step == 2


def test_each_layer_is_balanced_by_itself(script: ModuleType, plan: object) -> None:
    one, other = torch.tensor([[9.0, 9, 0, 0]] * 8), torch.tensor([[0.0, 0, 9, 9]] * 8)
    even = torch.cat([one, other])
    assert float(script.balance_loss([one, other], plan)) == pytest.approx(4, abs=1e-2)
    assert float(script.balance_loss([even, even], plan)) == pytest.approx(2, abs=1e-6)
    assert script.shares(one, plan) == [1, 1, 0, 0]


def test_paragraphs_are_on_one_line_and_verses_without_numbers(script: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("Genesis 1\n\n  1 In the beginning\nGod.\n  10 And\nnow 100 years.\n\n\n\n1813 it was.\n")
    assert script.read(path) == "Genesis 1\n\nIn the beginning God. And now 100 years.\n\n1813 it was.\n"


def test_what_cannot_be_trained_is_refused(
    script: ModuleType, texts: tuple[list[Path], Path], plan: object, tmp_path: Path
) -> None:
    books, held_out = texts
    with pytest.raises(SystemExit, match=r"book\.txt: contains text of .*book\.txt, which must be held out"):
        script.Training(books, books[0], tmp_path / "out", plan)
    short = tmp_path / "short.txt"
    short.write_text("No.")
    with pytest.raises(SystemExit, match=r"short\.txt: \d+ tokens, must be more than 32"):
        script.Training(books, short, tmp_path / "out", plan)
    with pytest.raises(SystemExit, match=r"none\.txt: cannot be read"):
        script.Training([tmp_path / "none.txt"], held_out, tmp_path / "out", plan)
    script.Training(books, held_out, tmp_path / "out", plan).run(minutes=0)
    with pytest.raises(SystemExit, match=r"plan is .*'seed': 0.*'seed': 1.*name another --out"):
        script.Training(books, held_out, tmp_path / "out", replace(plan, seed=1))
    books[0].write_text(books[0].read_text() + "More.")
    with pytest.raises(SystemExit, match="texts is"):
        script.Training(books, held_out, tmp_path / "out", plan)
