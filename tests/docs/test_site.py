"""The site is built without a warning, has every page, and documents every command with all that it takes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hwsim.device.profile import known_profiles
from hwsim.simulation.plugins import EVICTIONS, POLICIES, PREFETCHES
from tests.cli.commands import listed
from tests.conftest import REPOSITORY

COMMANDS = dict(listed())


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site needs the extra `docs`")
    pytest.importorskip("mkdocstrings", reason="the site needs the extra `docs`")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    surroundings = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=REPOSITORY, env=surroundings, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return folder


def read(site: Path, page: str) -> str:
    return re.sub(r"<[^>]+>", "", (site / page / "index.html").read_text(encoding="utf-8"))


def test_every_command_is_in_the_reference_with_its_options(site: Path) -> None:
    page = read(site, "reference/cli")
    for name, command in COMMANDS.items():
        assert f"hwsim {name}" in page
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert max(parameter.opts, key=len) in page


def test_every_profile_is_in_the_reference_and_no_path_of_this_machine(site: Path) -> None:
    page = read(site, "reference/profiles")
    for name in known_profiles():
        assert f"hw_profiles/{name}.yaml" in page
    assert str(REPOSITORY) not in page


def test_the_contracts_are_in_the_reference(site: Path) -> None:
    page = read(site, "reference/python")
    for name in ("hwsim.api.replay", "hwsim.policy.Policy", "hwsim.evictions.Eviction", "hwsim.prefetch.Prefetch"):
        assert name in page


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        for found in re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text("utf-8")):
            assert "squidfunk" in found or "canonical" in found, f"{page.name}: {found}"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_does(name: str) -> None:
    command = COMMANDS[name]
    assert command.help, name
    for parameter in command.params:
        assert getattr(parameter, "help", None), f"hwsim {name}: {parameter.name} has no help"


@pytest.mark.parametrize("kind", [POLICIES, EVICTIONS, PREFETCHES], ids=lambda kind: kind.package)
def test_every_parameter_of_a_plugin_says_what_it_is(kind: Any) -> None:
    for name in kind.names():
        for field, about in kind.find(name)[1].model_fields.items():
            assert about.description, f"{name}: {field} has no description"
