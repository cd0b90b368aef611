"""The pages of the policies: the sections that a reader expects, and the parameters that the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hwsim.plugins import POLICIES
from tests.conftest import REPOSITORY

PAGES = sorted((REPOSITORY / "docs" / "policies").glob("*.md"))
SECTIONS = ["Equation", "Source", "Parameters", "Reads", "Assumes", "On the sample trace"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_describes_its_policy(page: Path) -> None:
    text = page.read_text()
    assert text.startswith(f"# {page.stem}\n")
    assert re.findall(r"^## (.*)$", text, re.MULTILINE) == SECTIONS
    fields = POLICIES.find(page.stem)[1].model_fields
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", text, re.MULTILINE))
    assert list(rows) == list(fields)
    for name, default in rows.items():
        assert default == str(fields[name].default).replace("None", "none").replace("False", "false"), name
    for target in re.findall(r"\]\(([^)#]+?)\)", text):
        assert target.startswith("http") or (page.parent / target).exists(), target
    assert f"]({page.stem}.svg)" in text


def test_every_policy_has_a_page() -> None:
    missing = set(POLICIES.names()) - {page.stem for page in PAGES}
    assert missing <= {"predictor"}
