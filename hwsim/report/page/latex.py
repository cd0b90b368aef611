"""The table of runs for a paper: units in the heads, the fastest first."""

from __future__ import annotations

from collections.abc import Callable

from hwsim.report.page.digest import Named
from hwsim.util.units import show_number

_LETTERS = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LETTERS |= {each: f"\\{each}" for each in "&%$#_"}


def latex(found: list[Named]) -> str:
    """A table for ``\\input``, with rules of the package booktabs; columns that no run fills are left out.

    Devices come in the order of the results, the runs of each by falling tokens/s.
    """
    devices = list(dict.fromkeys(each.device for each in found))
    runs = sorted(found, key=lambda each: (devices.index(each.device), -each.row["throughput_tok_s"]))
    columns = [(head, [_shown(get(each)) for each in runs]) for head, get in _COLUMNS]
    used = [(head, cells) for head, cells in columns if any(cells)]
    told = {(each.row["provenance"]["model"]["name"], each.row["provenance"]["trace"]["name"]) for each in found}
    version = ", ".join(sorted({str(each.row["provenance"]["hwsim"]) for each in found}))
    lines = [
        f"% made by hwsim {version} of " + "; ".join(_escaped(f"{model} on {trace}") for model, trace in sorted(told)),
        r"\begin{tabular}{ll" + "r" * (len(used) - 2) + "}", r"\toprule",
        " & ".join(_escaped(head) for head, _ in used) + r" \\", r"\midrule",
    ]  # fmt: skip
    rows = list(zip(*(cells for _, cells in used), strict=True))
    for number, (run, row) in enumerate(zip(runs, rows, strict=True)):
        if number and run.device != runs[number - 1].device:
            lines.append(r"\midrule")
        lines.append(" & ".join(map(_escaped, row)) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def _shown(value: str | float | None) -> str:
    """Four digits, zeros at the end too: numbers of a column are equally exact."""
    if value is None or isinstance(value, str):
        return value or ""
    text = f"{value:#.4g}"
    return show_number(value) if "e" in text else text.removesuffix(".")


def _escaped(text: str) -> str:
    return "".join(_LETTERS.get(letter, letter) for letter in " ".join(text.split()))


def _mean(key: str, factor: float) -> Callable[[Named], float | None]:
    """Of a token, times a factor that makes a unit."""
    return lambda each: None if each.row[key] is None else each.row[key] / each.row["tokens"] * factor


def _measured(key: str, factor: float = 1) -> Callable[[Named], float | None]:
    """What only the closed loop measures."""
    return lambda each: each.row[key] * factor if each.closed else None


_COLUMNS: list[tuple[str, Callable[[Named], str | float | None]]] = [
    ("device", lambda each: each.device),
    ("run", lambda each: each.label),
    ("tokens/s", lambda each: each.row["throughput_tok_s"]),
    ("p50 (ms)", lambda each: each.row["latency_s"]["p50"] * 1e3),
    ("p95 (ms)", lambda each: each.row["latency_s"]["p95"] * 1e3),
    ("hit rate (%)", lambda each: None if each.row["hit_rate"] is None else each.row["hit_rate"] * 100),
    ("MLP density", lambda each: each.row["mlp_density"]),
    ("Flash (MB/token)", _mean("flash_bytes", 1e-6)),
    ("DRAM (MB/token)", _mean("dram_bytes", 1e-6)),
    ("energy (mJ/token)", _mean("energy_j", 1e3)),
    ("perplexity", _measured("perplexity")),
    ("dense", _measured("dense_perplexity")),
    ("KL (nats)", _measured("kl")),
    ("top-1 (%)", _measured("top1", 100)),
]
