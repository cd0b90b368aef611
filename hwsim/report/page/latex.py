"""The table of runs in LaTeX for a paper: units in the heads, the fastest run first."""

from __future__ import annotations

from collections.abc import Callable

from hwsim.report.page.digest import Named
from hwsim.util.units import show_number

_LETTERS = {"\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LETTERS |= {letter: f"\\{letter}" for letter in "&%$#_"}


def latex(found: list[Named]) -> str:
    """A table for ``\\input``, with rules of the package booktabs; columns that no run fills are left out.

    Devices are in the order of the results, the runs of each device by falling tokens/s.
    """
    devices = list(dict.fromkeys(run.device for run in found))
    runs = sorted(found, key=lambda run: (devices.index(run.device), -run.row["throughput_tok_s"]))
    columns = [(head, [_shown(get(run)) for run in runs]) for head, get in _COLUMNS]
    used = [(head, cells) for head, cells in columns if any(cells)]
    pairs = {(run.row["provenance"]["model"]["name"], run.row["provenance"]["trace"]["name"]) for run in found}
    version = ", ".join(sorted({str(run.row["provenance"]["hwsim"]) for run in found}))
    lines = [
        f"% made by hwsim {version} of " + "; ".join(_escaped(f"{model} on {trace}") for model, trace in sorted(pairs)),
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
    """Four significant digits with trailing zeros, so that the numbers of a column are equally exact."""
    if value is None or isinstance(value, str):
        return value or ""
    text = f"{value:#.4g}"
    return show_number(value) if "e" in text else text.removesuffix(".")


def _escaped(text: str) -> str:
    return "".join(_LETTERS.get(letter, letter) for letter in " ".join(text.split()))


def _mean(key: str, factor: float) -> Callable[[Named], float | None]:
    """Function that returns a run's mean of a field for each token, times a factor for the unit."""
    return lambda run: None if run.row[key] is None else run.row[key] / run.row["tokens"] * factor


def _measured(key: str, factor: float = 1) -> Callable[[Named], float | None]:
    """Function that returns a field that only closed-loop runs have, times a factor."""
    return lambda run: run.row[key] * factor if run.closed else None


_COLUMNS: list[tuple[str, Callable[[Named], str | float | None]]] = [
    ("device", lambda run: run.device),
    ("run", lambda run: run.label),
    ("tokens/s", lambda run: run.row["throughput_tok_s"]),
    ("p50 (ms)", lambda run: run.row["latency_s"]["p50"] * 1e3),
    ("p95 (ms)", lambda run: run.row["latency_s"]["p95"] * 1e3),
    ("hit rate (%)", lambda run: None if run.row["hit_rate"] is None else run.row["hit_rate"] * 100),
    ("MLP density", lambda run: run.row["mlp_density"]),
    ("Flash (MB/token)", _mean("flash_bytes", 1e-6)),
    ("DRAM (MB/token)", _mean("dram_bytes", 1e-6)),
    ("energy (mJ/token)", _mean("energy_j", 1e3)),
    ("perplexity", _measured("perplexity")),
    ("dense", _measured("dense_perplexity")),
    ("KL (nats)", _measured("kl")),
    ("top-1 (%)", _measured("top1", 100)),
]
