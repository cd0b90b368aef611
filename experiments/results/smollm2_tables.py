"""The tables of docs/results/smollm2.md, made of result files; nothing is computed that the results do not hold."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from tables import Row, cells, grid, replaced

COSTS = (0.2, 0.5)  # perplexity above dense at which speeds are compared
_KEPT = (
    "label", "asked", "trained", "perplexity", "dense_perplexity", "kl", "top1", "mlp_density", "hit_rate",
    "throughput_tok_s", "flash_bytes", "dram_bytes", "tokens", "tokens_scored", "rule", "share", "rate",
)  # fmt: skip


def write(page: Path, rows: list[Row], opened: dict[str, Any], training: Row, commands: dict[str, str]) -> None:
    """Put every table between its markers, and the numbers into a JSON file beside the page.

    Args:
        page: with the markers.
        rows: closed loop.
        opened: open loop, by table.
        training: what `hwsim train lora` wrote; empty: there was none, and the page has no table of it.
        commands: of the open loop, by result.
    """
    made = {
        "perplexity": perplexity(rows),
        "kl": cells(rows, "label", "asked", lambda row: f"{row['kl']:.4f} ({_percent(row['top1'])})"),
        "speed": speed(rows),
        "cost": cost(rows, opened["dram"]),
        "gap": gap(rows, opened["gap"]),
        "eviction": cells(opened["eviction"], "label", "rule", lambda row: _percent(row["hit_rate"])),
        "dram": cells(opened["dram"], "label", "share", _pace),
        "flash": cells(opened["flash"], "label", "rate", _pace),
    } | ({"lora": lora(training)} if training else {})
    _put(page, made, {
        "commands": {name: f"hwsim {command}" for name, command in sorted(commands.items())},
        "closed_loop": [_kept(row) for row in rows],
        "open_loop": {key: [_kept(row) for row in value] for key, value in opened.items()},
        "training": training.get("done", {}) | training.get("training", {}),
    })  # fmt: skip


def write_tuned(page: Path, search: list[Row], uniform: list[Row], adapted: list[Row]) -> None:
    """The table of what was tuned, and its numbers, as `write`.

    Args:
        page: with the markers.
        search: what was tuned, by loss.
        uniform: closed loop of DIP-CA as the authors set it, at several densities.
        adapted: the same with the adapter.
    """
    found = [{"loss": each["loss"], "tuned": each["tuned"], "judged": _kept(each["judged"])} for each in search]
    numbers = {"tuned": found, "uniform": [_kept(row) for row in uniform], "adapted": [_kept(row) for row in adapted]}
    _put(page, {"tuned": tuned(search, uniform, adapted)}, numbers)


def _put(page: Path, made: dict[str, str], numbers: Row) -> None:
    """Tables into the page, numbers beside those that are there."""
    text = page.read_text(encoding="utf-8")
    for name, table in made.items():
        text = replaced(text, name, table)
    page.write_text(text, encoding="utf-8")
    beside = page.with_suffix(".json")
    kept = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    beside.write_text(json.dumps(kept | numbers, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _kept(row: Row) -> Row:
    return {key: row[key] for key in _KEPT if key in row}


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def _pace(row: Row) -> str:
    return f"{row['throughput_tok_s']:.1f}"


def perplexity(rows: list[Row]) -> str:
    """Perplexity by policy and density."""
    dense = rows[0]["dense_perplexity"]
    table = cells(rows, "label", "asked", lambda row: f"{row['perplexity']:.2f}")
    return f"Dense: {dense:.3f}.\n\n{table}"


def speed(rows: list[Row]) -> str:
    """Tokens/s and hit rate by policy and density."""
    return cells(rows, "label", "asked", lambda row: f"{_pace(row)} ({_percent(row['hit_rate'])})")


def at_cost(points: list[tuple[float, float, float]], cost: float) -> tuple[float, float] | None:
    """Where a policy costs so much perplexity: (density, tokens/s), interpolated between its measured points.

    Args:
        points: (density, perplexity above dense, tokens/s), by rising density.
        cost: perplexity above dense.

    Returns:
        None where even its highest density costs more, or its lowest less: beyond what was measured nothing is guessed.
    """
    for (low, dear, fast), (high, cheap, slow) in pairwise(points):
        if cheap <= cost <= dear and dear > cheap:
            share = (cost - cheap) / (dear - cheap)
            return high + share * (low - high), slow + share * (fast - slow)
    return None


def cost(rows: list[Row], dram: list[Row]) -> str:
    """Density and tokens/s of each policy where it costs a certain perplexity."""
    dense = next(row["throughput_tok_s"] for row in dram if row["label"] == "dense" and row["share"] == "50%")
    body = []
    for label in dict.fromkeys(row["label"] for row in rows):
        own = sorted((row for row in rows if row["label"] == label), key=lambda row: row["asked"])
        points = [
            (row["mlp_density"], row["perplexity"] - row["dense_perplexity"], row["throughput_tok_s"]) for row in own
        ]
        line = [label]
        for each in COSTS:
            found = at_cost(points, each)
            if found:
                line.append(f"{found[0]:.3f}: {found[1]:.1f} tokens/s, {found[1] / dense:.2f} x")
            else:
                least, most = own[0]["asked"], own[-1]["asked"]
                line.append(f"costs less at {least}" if points[0][1] < each else f"costs more at {most}")
        body.append(line)
    head = ["", *(f"+{each} perplexity, at density" for each in COSTS)]
    return f"Dense streams {dense:.1f} tokens/s.\n\n{grid(head, body)}"


def lora(training: Row) -> str:
    """What the training saw on its validation tokens."""
    done = training["done"]
    first = done["curve"][0]["perplexity"] - done["dense_perplexity"]
    body = [
        [
            str(look["step"]), f"{look['tokens']:,}", f"{look['perplexity']:.3f}", f"{look['kl']:.4f}",
            f"{100 * (1 - (look['perplexity'] - done['dense_perplexity']) / first):.1f} %",
        ]
        for look in done["curve"]
    ]  # fmt: skip
    table = grid(["step", "tokens", "perplexity", "KL to dense", "of the gap closed"], body)
    return f"Validation tokens, dense {done['dense_perplexity']:.3f}; step {done['best']} was kept:\n\n{table}"


def tuned(search: list[Row], uniform: list[Row], adapted: list[Row]) -> str:
    """Tuned settings on held-out text, beside uniform DIP-CA that costs as much there, without and with the adapter."""
    body = []
    for each in search:
        before, after = each["tuned"], each["judged"]
        costs = [row["perplexity"] - row["dense_perplexity"] for row in (before, after)]
        beside = []
        for rows in (uniform, adapted):
            like = at_cost(_points(rows), costs[1])
            gain = f", {100 * (after['throughput_tok_s'] / like[1] - 1):+.1f} %" if like else ""
            beside.append(f"{like[1]:.1f}{gain}" if like else "-")
        on = "on" if before["settings"].get("lora") else "off"
        body.append([
            f"+{each['loss']:g}", f"{costs[0]:+.3f}", f"{costs[1]:+.3f}", on, f"{after['mlp_density']:.3f}",
            _pace(after), *beside,
        ])  # fmt: skip
    head = ["at most", "perplexity, tuning text", "held-out", "adapter", "MLP density", "tokens/s"]
    return grid([*head, "uniform at that cost, gain", "uniform with adapter, gain"], body)


def _points(rows: list[Row]) -> list[tuple[float, float, float]]:
    own = sorted(rows, key=lambda row: row["asked"])
    return [(row["mlp_density"], row["perplexity"] - row["dense_perplexity"], row["throughput_tok_s"]) for row in own]


def gap(rows: list[Row], opened: list[Row]) -> str:
    """Open against closed loop, over the same tokens."""
    closed = {(row["label"], row["asked"]): row for row in rows}
    body = []
    for one in opened:
        other = closed[one["label"], one["asked"]]
        body.append([
            one["label"], str(one["asked"]),
            f"{_percent(one['hit_rate'])} / {_percent(other['hit_rate'])}",
            f"{one['flash_bytes'] / one['tokens'] / 1e6:.3f} / {other['flash_bytes'] / other['tokens'] / 1e6:.3f}",
            f"{_pace(one)} / {_pace(other)}",
            f"{100 * (one['throughput_tok_s'] / other['throughput_tok_s'] - 1):+.1f} %",
        ])  # fmt: skip
    head = ["", "density", "hit rate, open / closed", "Flash MB a token", "tokens/s", "open against closed"]
    return grid(head, body)
