"""The tables of the experiments: interpolation between measured points, places in a page."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from tests.conftest import REPOSITORY

EXPERIMENTS = REPOSITORY / "experiments"


@pytest.fixture(scope="module")
def tables() -> ModuleType:
    return load(EXPERIMENTS / "tables.py")


@pytest.fixture
def of_smollm2(tables: ModuleType, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setitem(sys.modules, "tables", tables)
    return load(EXPERIMENTS / "results" / "smollm2_tables.py")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_speed_at_a_cost_lies_between_the_measured_points(of_smollm2: ModuleType) -> None:
    points = [(0.5, 6.0, 40.0), (0.6, 2.0, 30.0), (0.7, 0.4, 20.0), (0.8, 0.1, 10.0)]
    assert of_smollm2.at_cost(points, 0.4) == pytest.approx((0.7, 20.0))
    assert of_smollm2.at_cost(points, 4.0) == pytest.approx((0.55, 35.0))
    assert of_smollm2.at_cost(points, 0.2) == pytest.approx((0.7 + 2 / 30, 20 - 20 / 3))
    assert of_smollm2.at_cost(points, 0.05) is None
    assert of_smollm2.at_cost(points, 7.0) is None


def test_tables_take_their_places_and_leave_the_rest(tables: ModuleType) -> None:
    page = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert tables.replaced(page, "x", "| 1 |") == "a\n<!-- x: begin -->\n\n| 1 |\n\n<!-- x: end -->\nb\n"
    with pytest.raises(SystemExit, match="no place for the table 'y'"):
        tables.replaced(page, "y", "")


def test_cells_keep_the_order_in_which_they_come(tables: ModuleType) -> None:
    rows = [{"p": "b", "d": 2, "v": 1}, {"p": "a", "d": 1, "v": 2}, {"p": "b", "d": 1, "v": 3}]
    table = tables.cells(rows, "p", "d", lambda row: str(row["v"]))
    assert table.splitlines() == ["|  | 2 | 1 |", "| --- | ---: | ---: |", "| b | 1 | 3 |", "| a | - | 2 |"]
