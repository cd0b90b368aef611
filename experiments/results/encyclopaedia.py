"""Real text for the experiments: encyclopaedia articles from the test data of the package gensim 4.4.0.

    python experiments/results/encyclopaedia.py FOLDER

writes FOLDER/train.txt and FOLDER/test.txt, which share no article. The articles are Wikipedia's, CC BY-SA 3.0: they
are made where they are needed and are no part of this repository. Needs pip, and the extra `experiments`.
"""

from __future__ import annotations

import argparse
import bz2
import contextlib
import io
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ET
import zipfile
from collections.abc import Iterator
from pathlib import Path

import mwparserfromhell

PACKAGE = "gensim==4.4.0"
MEMBER = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
TEST_EVERY = 8  # one article in eight is for testing
_SPACES = re.compile(r"[ \t\u00a0]+")


def download(folder: Path) -> Path:
    """The package's wheel, from the package index, without what it depends on."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        "-d",
        str(folder),
    ]
    subprocess.run([*command, PACKAGE], check=True)
    return next(folder.glob("gensim-*.whl"))


def articles(wheel: Path) -> Iterator[tuple[str, str]]:
    """(title, wiki text) of each article; redirects and other pages are left out."""
    with zipfile.ZipFile(wheel) as archive:
        dump = bz2.decompress(archive.read(MEMBER))
    pages = ET.iterparse(io.BytesIO(dump))
    while True:
        try:
            _, element = next(pages)
        except (ET.ParseError, StopIteration):  # the dump is cut off in the middle of its last article
            return
        if not element.tag.endswith("}page"):
            continue
        title, space = element.findtext("{*}title", ""), element.findtext("{*}ns")
        text = element.findtext(".//{*}text", "")
        if space == "0" and not text.lower().startswith("#redirect"):
            yield title, text
        element.clear()


def prose(title: str, wiki: str) -> str:
    """The paragraphs of an article under its title, without tables, lists, captions and references."""
    code = mwparserfromhell.parse(wiki)
    for tag in code.filter_tags(matches=lambda node: str(node.tag).lower() in ("ref", "table", "gallery", "math")):
        with contextlib.suppress(ValueError):  # it went with the one around it
            code.remove(tag)
    text = code.strip_code()
    lines = (_SPACES.sub(" ", line).strip() for line in text.splitlines())
    paragraphs = [line for line in lines if len(line) > 120 and line[-1] in ".!?\"')" and "|" not in line]
    return "\n\n".join([title, *paragraphs])


def main() -> None:
    """Write both texts."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--wheel", type=Path, help="the wheel of gensim, where it is at hand already")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        wheel = given.wheel or download(Path(temporary))
        texts = [prose(*article) for article in articles(wheel)]
    texts = [text for text in texts if len(text) > 2000]
    parts = {
        "test": texts[::TEST_EVERY],
        "train": [text for number, text in enumerate(texts) if number % TEST_EVERY],
    }
    for name, chosen in parts.items():
        path = given.folder / f"{name}.txt"
        path.write_text("\n\n\n".join(chosen) + "\n", encoding="utf-8")
        print(f"{path}: {len(chosen)} articles, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
