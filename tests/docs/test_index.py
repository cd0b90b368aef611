"""Has every built-in policy and eviction rule its page, whole and true to the code, and its place in the index?"""

from __future__ import annotations

import importlib.util
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import REPOSITORY


def _load() -> Any:
    spec = importlib.util.spec_from_file_location("pages", REPOSITORY / "docs" / "pages.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages = _load()
EVERY = [(part, name) for part, kind in pages.KINDS.items() for name in pages.built_in(kind)]
every = pytest.mark.parametrize(("part", "name"), EVERY)


def page_of(part: str, name: str) -> Path:
    page: Path = REPOSITORY / "docs" / part / f"{name}.md"
    assert page.is_file(), f"docs/{part}/{name}.md is missing: every policy and rule needs a page"
    return page


@every
def test_a_page_has_its_sections(part: str, name: str) -> None:
    found = pages.sections(page_of(part, name))
    assert [heading for heading in found if heading] == pages.HEADINGS
    title, _, summary = found[""].partition("\n")
    assert re.fullmatch(rf"# `?{name}`?", title)
    assert summary.strip()
    for heading, text in found.items():
        assert text.strip(), f"{heading} is empty"
    assert re.search("`(hwsim|python docs/)", found["On the sample trace"]), "no command"


def shown(default: Any) -> str:
    return "none" if default is None else str(default).lower()


@every
def test_a_page_lists_the_parameters(part: str, name: str) -> None:
    fields = pages.KINDS[part].find(name)[1].model_fields
    text = pages.sections(page_of(part, name))["Parameters"]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    listed = {row[0]: row for row in rows[2:]}
    assert listed.keys() == fields.keys(), "the table has other parameters than the class"
    for field, info in fields.items():
        default = shown(info.get_default(call_default_factory=True))
        assert listed[field][1].lower() == default, f"{field}: its default is {default}"


@every
def test_a_page_has_its_picture(part: str, name: str) -> None:
    text = pages.sections(page_of(part, name))["On the sample trace"]
    assert re.search(rf"!\[[^\]]+\]\({name}\.svg\)", text), f"no ![...]({name}.svg)"
    picture = REPOSITORY / "docs" / part / f"{name}.svg"
    assert picture.is_file(), f"python docs/{part}/figures.py draws it"
    data = picture.read_bytes()
    assert len(data) < 60_000
    root = ET.fromstring(data)
    words = "".join(text for element in root.iter("{http://www.w3.org/2000/svg}text") for text in element.itertext())
    assert name in words
    assert not re.search(rb"\b20\d\d-\d\d-\d\dT", data)


@pytest.mark.parametrize("part", pages.KINDS)
def test_the_index_is_as_it_is_made(part: str) -> None:
    for name in pages.built_in(pages.KINDS[part]):
        page_of(part, name)
    page = (REPOSITORY / "docs" / part / "README.md").read_text()
    assert page == pages.with_index(part), "run python docs/pages.py"
    for name in pages.built_in(pages.KINDS[part]):
        assert f"[{name}]({name}.md)" in page


@pytest.mark.parametrize("part", pages.KINDS)
def test_nothing_is_left_of_what_is_gone(part: str) -> None:
    names = {"README", *pages.built_in(pages.KINDS[part])}
    assert {path.stem for path in (REPOSITORY / "docs" / part).iterdir() if path.suffix in (".md", ".svg")} <= names


def test_densities_follow_from_the_groups() -> None:
    assert pages.density("dip") == "`(2 keep_input + keep_down)/3`"
    assert pages.density("magnitude") == "`(2 + keep_down)/3`"
    assert pages.density("dense") == "1"


def test_the_first_sentence() -> None:
    assert pages.first_sentence("Signals `input` and\n`glu`. The cache: no.") == "Signals `input` and `glu`"
    assert pages.first_sentence("- signals: `glu`\n- cache: no") == "signals: `glu`"
    assert pages.first_sentence("arXiv 2312.11514\n\nMore.") == "arXiv 2312.11514"
