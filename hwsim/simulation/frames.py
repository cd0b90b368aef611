"""Results as pandas tables, and as HTML for notebooks."""

from __future__ import annotations

import html
from typing import Any, Literal

from hwsim.errors import SettingError
from hwsim.util.units import show_energy, show_number, show_size, show_time

Kind = Literal["summary", "groups", "tokens"]


def rows_of(result: dict[str, Any], kind: Kind = "summary") -> list[dict[str, Any]]:
    """The rows of a table of one result.

    Args:
        result: the result of one run, as it stands in a result file.
        kind: ``summary``, all single numbers in one row; ``groups``, a row for each group of each layer; ``tokens``, a
            row for each token, if they were kept.

    Raises:
        SettingError: there is no such table, or the tokens were not kept.
    """
    origin = result["provenance"]
    named = {
        "model": origin["model"]["name"], "trace": origin["trace"]["name"], "device": origin["device"]["name"],
        "policy": origin["policy"]["name"], "eviction": origin["eviction"]["name"],
    }  # fmt: skip
    if kind == "groups":
        return [named | group for group in result["groups"]]
    if kind == "tokens":
        if result.get("per_token") is None:
            raise SettingError("single tokens were not kept; replay with per_token=True")
        return [named | {"token": number} | token for number, token in enumerate(result["per_token"])]
    if kind != "summary":
        raise SettingError(f"to_frame({kind!r}): must be one of summary, groups, tokens")
    flat: dict[str, Any] = {}
    for key, value in result.items():
        if isinstance(value, dict) and key in _FLAT:
            flat |= {f"{key}_{part}": number for part, number in value.items()}
        elif value is None or isinstance(value, int | float):
            flat[key] = value
    parameters = {
        f"{what}.{key}": value for what in ("policy", "eviction") for key, value in origin[what]["parameters"].items()
    }
    chosen = {
        f"settings.{key}": value for key, value in origin["settings"].items() if not isinstance(value, dict | list)
    }
    sure = {f"{part}_confidence": origin["device"][part].get("confidence") for part in ("flash", "dram")}
    return [named | sure | parameters | chosen | flat]


_FLAT = ("latency_s", "time_s", "busy_s", "energy_by_source_j")


def frame(rows: list[dict[str, Any]]) -> Any:
    """A pandas DataFrame of rows.

    Raises:
        SettingError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise SettingError("to_frame() needs pandas: pip install pandas") from error
    return pandas.DataFrame(rows)


_COLUMNS = (
    "policy",
    "device",
    "tokens/s",
    "latency p50 / p95",
    "hit rate",
    "MLP density",
    "Flash a token",
    "DRAM a token",
)


def to_html(results: list[dict[str, Any]]) -> str:
    """An HTML table of results, followed by their notes."""
    accurate = any("perplexity" in result for result in results)
    heads = [*_COLUMNS, "energy a token", *(("perplexity", "dense") if accurate else ())]
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(result, accurate))}</tr>"
        for result in results
    )
    notes = dict.fromkeys(note for result in results for note in result["notes"])
    items = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (
        f"<ul>{items}</ul>" if items else ""
    )


def _cells(result: dict[str, Any], accurate: bool) -> list[str]:
    origin, tokens, latency = result["provenance"], result["tokens"], result["latency_s"]
    rate, energy = result["hit_rate"], result["energy_j"]
    cells = [
        origin["policy"]["name"], origin["device"]["name"], show_number(result['throughput_tok_s']),
        f"{show_time(latency['p50'])} / {show_time(latency['p95'])}", "-" if rate is None else f"{rate:.1%}",
        f"{result['mlp_density']:.3f}",
        *(show_size(result[key] / tokens) for key in ("flash_bytes", "dram_bytes")),
        "-" if energy is None else show_energy(energy / tokens),
    ]  # fmt: skip
    if accurate:
        cells += [show_number(result[key]) if key in result else "-" for key in ("perplexity", "dense_perplexity")]
    return cells
