"""Results that reports are made of."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import hwsim
from tests.conftest import write_trace


def as_closed(row: dict, perplexity: float) -> dict:
    """A result as a closed loop would write it."""
    told = row["provenance"] | {
        "trace": {"name": "book.txt", "origin": "closed loop", "provenance": {"tokens_sha256": "ab" * 32}}
    }
    return row | {
        "provenance": told, "perplexity": perplexity, "dense_perplexity": 20.0, "kl": 0.1, "top1": 0.9, "tokens_scored": 50,
    }  # fmt: skip


@pytest.fixture
def rows(tmp_path: Path) -> list[dict]:
    """Three results of one trace, with every token."""
    trace = write_trace(tmp_path / "t.npz")
    found = hwsim.replay(trace, "pixel8", ["dense", "dip", "dip-ca"], dram="60%", per_token=True)
    return [json.loads(each.to_json()) for each in found]


@pytest.fixture
def here(tmp_path: Path, rows: list[dict], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with result files: open, closed and many."""
    monkeypatch.chdir(tmp_path)
    closed = [as_closed(row, 20 + number / 3) for number, row in enumerate(rows)]

    def write(name: str, results: list[dict]) -> None:
        (tmp_path / name).write_text(json.dumps({"format": "hwsim-results", "version": 1, "results": results}))

    write("open.json", rows)
    write("closed.json", closed)
    many = []
    for number in range(200):
        row = json.loads(json.dumps({key: value for key, value in rows[2].items() if key != "per_token"}))
        row["provenance"]["policy"]["parameters"]["gamma"] = number / 1000
        row["throughput_tok_s"] *= 1 + number / 100
        many.append(row)
    write("many.json", many)
    return tmp_path
