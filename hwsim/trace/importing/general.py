"""The general form of a router trace, as CSV or as JSON lines; docs/reference/router-trace.md describes it."""

from __future__ import annotations

from hwsim.trace.importing import cells, objects, preamble
from hwsim.trace.importing.columns import Column
from hwsim.trace.importing.lines import Block, LineFile
from hwsim.trace.importing.router import RouterFile

CSV, JSON = "csv", "jsonl"

COLUMNS = (
    Column("sequence", "sequence"),
    Column("phase", "phase", "phase"),
    Column("token", "token"),
    Column("layer", "layer"),
    Column("slot", "rank", required=False),
    Column("expert", "expert"),
    Column("weight", "weight", "number", required=False),
    Column("residency", "residency", "flag", required=False),
    Column("accepted", "accepted", "flag", required=False),
)
_NAMES = ("sequence", "token")


def is_json(block: Block) -> bool:
    """Whether the first lines of a file are JSON."""
    return block.lines[0].lstrip().startswith("{")


def read_csv(source: LineFile, block: Block) -> RouterFile:
    """Read the preamble of the CSV form: comment lines, then the names of the columns.

    Raises:
        TraceError: the preamble or the columns are wrong.
    """
    if not source.ended:
        raise source.error("the last line has no line end, so it may be cut off; end it with one if it is whole")
    entries = preamble.read_comments(source, block.lines)
    skip = entries.lines + 1
    if len(block.lines) < skip:
        raise source.error("ends after the preamble; it must name the columns, and have rows")
    header = [name.strip() for name in cells.split(source, block.lines[skip - 1], skip)]
    columns = cells.find_columns(source, header, COLUMNS, skip)
    checked = preamble.check(source, entries)
    return RouterFile(source, CSV, checked, cells.Cells(source, columns), skip, _NAMES)


def read_json(source: LineFile, block: Block) -> RouterFile:
    """Read the preamble of the JSON form: the first object.

    Raises:
        TraceError: the first line is no preamble, or a wrong one.
    """
    values = objects.parse(source, block.lines[0], 1)
    if "n_layer" not in values and "expert" in values:
        raise source.error("is a row; the first object must be the preamble, with model, n_layer and n_expert", 1)
    checked = preamble.check(source, preamble.read_object(source, values))
    return RouterFile(source, JSON, checked, objects.Objects(source, COLUMNS), 1, _NAMES)
