"""The pages of policies and eviction rules, read; and the index of each kind, written: python docs/pages.py."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

from hwsim.errors import HwsimError
from hwsim.policy import ModelShape
from hwsim.simulation.plugins import EVICTIONS, POLICIES

DOCS = Path(__file__).resolve().parent
KINDS: dict[str, Any] = {"policies": POLICIES, "evictions": EVICTIONS}
HEADINGS = ["Equation", "Source", "Parameters", "Reads", "Assumes", "On the sample trace"]
BEGIN, END = "<!-- index: python docs/pages.py -->", "<!-- end of index -->"

_MODEL = ModelShape(
    name="any", num_hidden_layers=2, hidden_size=64, intermediate_size=128, num_attention_heads=4,
    num_key_value_heads=4, head_dim=16, vocab_size=100,
)  # fmt: skip


def built_in(kind: Any) -> list[str]:
    """Names of the plug-ins that come with hwsim."""
    return [name for name, origin in kind.names().items() if origin.startswith(f"{kind.package}.")]


def sections(page: Path) -> dict[str, str]:
    """The text below each heading of a page; what stands before the first one is under "". Code blocks stay whole."""
    found, heading, code = {"": ""}, "", False
    for line in page.read_text(encoding="utf-8").splitlines():
        code ^= line.startswith("```")
        if line.startswith("## ") and not code:
            heading = line[3:].strip()
            found[heading] = ""
        else:
            found[heading] += line + "\n"
    return {name: text.strip() for name, text in found.items()}


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends a sentence, or the first empty line, on one line; no mark of a list."""
    paragraph = " ".join(text.split("\n\n", maxsplit=1)[0].split("\n- ", maxsplit=1)[0].split())
    return re.split(r"(?<=[.;])\s", re.sub(r"^[-*] ", "", paragraph))[0].rstrip(".;")


def density(name: str) -> str:
    """Share of a gated MLP that a policy reads, from its groups; of what they cannot tell, a word."""
    kind = POLICIES.find(name)[1]
    try:
        groups = kind().groups(_MODEL)
    except HwsimError:  # it needs a file
        return "on its page"
    if any(group.axis == "expert" for group in groups):
        return "experts read / experts"
    cut = {group.name: sum(slice_.partition(".")[0] in _MODEL.mlp for slice_ in group.slices) for group in groups}
    whole = len(_MODEL.mlp) - sum(cut.values())
    parts = [str(whole)] if whole else []
    for group, matrices in cut.items():
        if matrices:
            parts.append(("" if matrices == 1 else f"{matrices} ") + f"keep_{group}")
    if len(groups) == 1 and not whole:
        return f"`keep_{groups[0].name}`"
    return "1" if not groups else f"`({' + '.join(parts)})/{len(_MODEL.mlp)}`"


def index(part: str) -> str:
    """The table of all plug-ins of a kind.

    Raises:
        FileNotFoundError: one has no page.
    """
    kind = KINDS[part]
    rows = [["policy", "what it does", "density", "reads"], ["---"] * 4]
    if part == "evictions":
        rows = [["rule", "what it does", "reads"], ["---"] * 3]
    for name in built_in(kind):
        summary = (kind.find(name)[1].__doc__ or "").strip().splitlines()[0]
        reads = first_sentence(sections(DOCS / part / f"{name}.md")["Reads"])
        middle = [density(name)] if part == "policies" else []
        cells = [f"[{name}]({name}.md)", summary, *middle, reads]
        rows.append([cell.replace("|", "\\|") for cell in cells])
    return "\n".join(f"| {' | '.join(row)} |".replace("| --- ", "|---").replace("--- |", "---|") for row in rows)


def with_index(part: str) -> str:
    """The index page of a kind with the table as it must be."""
    before, _, rest = (DOCS / part / "README.md").read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{index(part)}\n\n{END}{after}"


def main() -> int:
    """Write both index pages; 1 if a page is missing."""
    missing = 0
    for part in KINDS:
        try:
            text = with_index(part)
        except FileNotFoundError as error:
            sys.stderr.write(f"{error.filename}: is missing; every policy and rule needs a page\n")
            missing = 1
            continue
        (DOCS / part / "README.md").write_text(text, encoding="utf-8")
    return missing


if __name__ == "__main__":
    sys.exit(main())
