"""Router traces of BigMoeOnEdge (github.com/Helldez/BigMoeOnEdge): CSV, "route_trace v1"."""

from __future__ import annotations

from hwsim.trace.importing import cells, preamble
from hwsim.trace.importing.columns import Column
from hwsim.trace.importing.lines import Block, LineFile
from hwsim.trace.importing.router import RouterFile
from hwsim.util.units import shorten

NAME = "bigmoe"
_MAGIC, _VERSION = "# route_trace", "# route_trace v1"

COLUMNS = (
    Column("turn", "sequence"),
    Column("phase", "phase", "flag"),
    Column("step", "token"),
    Column("layer", "layer"),
    Column("slot", "rank"),
    Column("expert", "expert"),
    Column("weight", "weight", "number"),
    Column("residency", "residency", "flag", most=2),  # 2: found because a prefetch had read it
    Column("expert_bytes", "bytes"),
    Column("dropped", "dropped", "flag", required=False),
)


def is_one(block: Block) -> bool:
    """Whether the first lines of a file are those of this format, of any version."""
    return block.lines[0].startswith(_MAGIC)


def read(source: LineFile, block: Block) -> RouterFile:
    """Read the preamble.

    Args:
        source: the file.
        block: its first lines.

    Raises:
        TraceError: it is of another version, or its preamble or columns are wrong.
    """
    if block.lines[0].strip() != _VERSION:
        raise source.error(f"is {shorten(repr(block.lines[0]))}; this hwsim reads {_VERSION!r}", 1)
    if not source.ended:
        raise source.error("the last line has no line end, so it was cut off; delete the rows of its token")
    entries = preamble.read_comments(source, block.lines)
    skip = entries.lines + 1
    if len(block.lines) < skip:
        raise source.error("ends after the preamble; it must name the columns, and have rows")
    for layer, values in entries.layers.items():
        for name in ("expert_bytes", "dense_bytes"):
            if name not in values:
                raise source.error(f"layer {layer} has no {name} in the preamble; give both for every layer")
    header = [name.strip() for name in cells.split(source, block.lines[skip - 1], skip)]
    columns = cells.find_columns(source, header, COLUMNS, skip)
    return RouterFile(
        source, NAME, preamble.check(source, entries), cells.Cells(source, columns), skip, ("turn", "step"),
        resumes=True, unknown_weights=True,
    )  # fmt: skip
