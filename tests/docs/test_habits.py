"""The files that people and services look for in a repository agree with the package and with each other."""

from __future__ import annotations

import os
import re
import tomllib
from typing import Any

import pytest
import yaml

import hwsim
from tests.conftest import REPOSITORY

PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def read_yaml(name: str) -> Any:
    return yaml.safe_load((REPOSITORY / name).read_text(encoding="utf-8"))


@pytest.fixture
def workflow() -> Any:
    return read_yaml(".github/workflows/ci.yml")


def test_ci_runs_for_the_pythons_that_the_classifiers_name(workflow: Any) -> None:
    matrix = workflow["jobs"]["ci"]["strategy"]["matrix"]
    classifiers = "\n".join(PROJECT["classifiers"])
    assert matrix == {"python": re.findall(r"(?m)^Programming Language :: Python :: (\d+\.\d+)$", classifiers)}
    setup = [step for step in workflow["jobs"]["ci"]["steps"] if "setup-python" in step.get("uses", "")]
    assert [step["with"] for step in setup] == [{"python-version": "${{ matrix.python }}"}]


def test_ci_runs_what_contributors_run(workflow: Any) -> None:
    assert set(workflow[True]) == {"push", "pull_request"}, "YAML reads the key `on` as true"
    assert [step["run"] for step in workflow["jobs"]["ci"]["steps"] if "run" in step] == ["bash .ci/run"]
    assert os.access(REPOSITORY / ".ci" / "run", os.X_OK)
    assert workflow["permissions"] == {"contents": "read"}


def test_the_changelog_names_this_version_below_what_is_unreleased() -> None:
    text = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"(?m)^## (.+)$", text)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(hwsim.__version__)} \(\d{{4}}-\d\d-\d\d\)", headings[1])


def test_the_citation_is_of_this_version() -> None:
    citation = read_yaml("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["version"] == hwsim.__version__
    changelog = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {citation['version']} ({citation['date-released']})" in changelog.splitlines()
    assert citation["title"] == PROJECT["name"]
    assert citation["abstract"] == PROJECT["description"]
    assert citation["license"] == PROJECT["license"]
    assert citation["authors"] == PROJECT["authors"]
    (paper,) = citation["references"]
    assert paper["url"] == "https://arxiv.org/abs/2412.01380"


def test_the_readme_names_what_comes_with_the_core() -> None:
    readme = " ".join((REPOSITORY / "README.md").read_text(encoding="utf-8").split())
    brought = re.search(r"`pip install \.` brings (.*?), and `hwsim replay", readme)
    assert brought
    listed = {name.lower() for name in re.split(", | and ", brought[1])}
    assert listed == {re.split("[<>=]", dependency)[0] for dependency in PROJECT["dependencies"]}
