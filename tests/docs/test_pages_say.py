"""The documentation is run: its code, its commands, its paths and its copies of other files."""

from __future__ import annotations

import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from hwsim.cli.app import app
from hwsim.device.effective import MECHANISMS
from hwsim.device.profile import (
    Compute,
    Dram,
    Energy,
    Flash,
    FlashQueue,
    FlashTable,
    Profile,
    Spread,
    Thermal,
    load_profile,
)
from hwsim.prefetch import Ahead
from hwsim.simulation.plugins import EVICTIONS, POLICIES, PREFETCHES
from hwsim.testing import check_eviction, check_policy
from hwsim.timing import overlap
from tests.conftest import REPOSITORY
from tests.docs.blocks import blocks

README = (REPOSITORY / "README.md").read_text()
MADE = re.findall(r'"([\w/-]+\.md)"', (REPOSITORY / "docs" / "site.py").read_text())  # when the site is built
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]


def test_readme_shows_the_example_as_it_is() -> None:
    example = (REPOSITORY / "docs" / "examples" / "sliding_top.py").read_text()
    assert blocks(README, "python") == [example]
    check_policy(POLICIES.find(str(REPOSITORY / "docs" / "examples" / "sliding_top.py"))[1])


def test_examples_of_plugins_work(tmp_path: Path) -> None:
    policy, both, experts, test, rule = blocks(REPOSITORY / "docs" / "howto" / "policy.md", "python")
    (tmp_path / "calm.py").write_text(experts)
    assert len(experts.splitlines()) <= 20
    check_policy(POLICIES.find(str(tmp_path / "calm.py"))[1])
    (tmp_path / "both.py").write_text(both)
    check_policy(POLICIES.find(str(tmp_path / "both.py"))[1])
    (tmp_path / "mine.py").write_text(policy)
    (tmp_path / "rule.py").write_text(rule)
    assert len(policy.splitlines()) <= 20
    check_policy(POLICIES.find(str(tmp_path / "mine.py"))[1])
    name, found = EVICTIONS.find(str(tmp_path / "rule.py"))
    assert name == "rule"
    check_eviction(found)
    names: dict[str, Any] = {"Mine": POLICIES.find(str(tmp_path / "mine.py"))[1]}
    exec(test.replace("from mine import Mine\n", ""), names)
    tests = [value for name, value in names.items() if name.startswith("test_")]
    assert len(tests) == 2
    for each in tests:
        each()


def test_profiles_in_the_docs_load(tmp_path: Path) -> None:
    (least,) = blocks(README, "yaml")
    whole, table = blocks(REPOSITORY / "docs" / "reference" / "profile.md", "yaml")
    with_table = least.split("flash:")[0] + table
    for name, text in (("least", least), ("whole", whole), ("table", with_table)):
        (tmp_path / f"{name}.yaml").write_text(text)
        load_profile(tmp_path / f"{name}.yaml")


def commands() -> list[str]:
    found = []
    for page in PAGES:
        for block in blocks(page, "sh"):
            found += [line.rstrip(" &") for line in block.splitlines() if line.startswith("hwsim ")]
        found += re.findall(r"`(hwsim [a-z]+ [^`]*--[^`.]*)`", page.read_text())
    return sorted(set(found))


def options(words: list[str]) -> set[str]:
    """Options of the command that `words` name."""
    command = typer.main.get_command(app)
    for word in words:
        inner = getattr(command, "commands", {})
        if word not in inner:
            break
        command = inner[word]
    return {option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]}


@pytest.mark.parametrize("command", commands())
def test_commands_exist_with_their_options(command: str) -> None:
    words = shlex.split(command.replace("...", ""))
    assert words[1] in typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known = options(words[1:])
    for word in words:
        if word.startswith("-") and word != "-":
            assert word.partition("=")[0] in known, f"{command}: {word}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_paths_exist(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\(([^)#]+?)\)", text):
        if not target.startswith("http"):
            path = (page.parent / target).resolve()
            assert path.exists() or path.relative_to(REPOSITORY / "docs").as_posix() in MADE, target
    if page.name == "log.md":  # it says what was when it was written
        return
    scripts = re.findall(r"(?<![\w/])((?:benchmarks|docs|experiments)/[\w/]+\.py)\b", text)
    for path in scripts + re.findall(r"`((?:hwsim|policies|hw_profiles|traces|tests|docs)/[\w./]*)`", text):
        assert (REPOSITORY / path).exists(), path


@pytest.mark.parametrize("rule", EVICTIONS.names())
def test_every_rule_has_its_page(rule: str) -> None:
    text = (REPOSITORY / "docs" / "evictions" / f"{rule}.md").read_text()
    heads = ["Equation", "Source", "Parameters", "Reads", "Assumes", "On the sample trace"]
    assert re.findall(r"^## (.*)", text, re.MULTILINE) == heads
    for name in EVICTIONS.find(rule)[1].model_fields:
        assert f"| `{name}` |" in text
    assert f"evictions/{rule}.md" in (REPOSITORY / "docs" / "explanation" / "evictions.md").read_text()


def test_readme_names_every_module() -> None:
    table = README.split("## What is where")[1]
    for path in sorted((REPOSITORY / "hwsim").iterdir()):
        if path.name.startswith("_") or path.suffix not in ("", ".py") or path.name in ("errors.py", "files.py"):
            continue
        assert path.name in table, f"README's list lacks {path.name}"


def test_the_order_of_layers_is_the_one_that_is_checked() -> None:
    config = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    layers = config["tool"]["importlinter"]["contracts"][0]["layers"]
    page = (REPOSITORY / "docs" / "design.md").read_text()
    shown = [line.split("  ")[0].strip() for line in blocks(page, "text")[0].splitlines()]
    assert shown == layers


def test_the_page_of_devices_names_every_rule_and_mechanism() -> None:
    page = (REPOSITORY / "docs" / "explanation" / "devices.md").read_text()
    for name in PREFETCHES.names():
        assert f"| `{name}` |" in page
    assert ",".join(MECHANISMS) in page
    for mode in overlap.names():
        assert f"| `{mode}` |" in page


def test_the_example_of_a_guess_works(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(blocks(REPOSITORY / "docs" / "explanation" / "devices.md", "python")[0])
    name, rule = PREFETCHES.make(str(tmp_path / "mine.py"))
    last = np.array([[True, False, False, True]])
    guessed = rule.guess(Ahead(0, "down", 4, last, {}, ("glu",), None))
    assert (name, guessed.tolist()) == ("mine", [[True, True, False, True]])


def test_every_field_of_a_profile_is_on_its_page() -> None:
    page = (REPOSITORY / "docs" / "reference" / "profile.md").read_text() + (
        REPOSITORY / "docs" / "explanation" / "devices.md"
    ).read_text()
    sections = (Dram, Flash, FlashTable, FlashQueue, Spread, Thermal, Compute, Energy, Profile)
    for field in {field for section in sections for field in section.model_fields}:
        assert re.search(rf"\b{field}\b", page), field


def test_no_placeholder_is_left() -> None:
    for page in PAGES:
        assert "@@" not in page.read_text(), page
        assert not re.search(r"\b(TODO|TBD|FIXME|XXX)\b", page.read_text()), page
