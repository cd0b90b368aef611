"""Results as tables of pandas, and as HTML where a notebook shows them."""

from __future__ import annotations

import html
from typing import Any, Literal

from hwsim.errors import SettingError
from hwsim.util.units import show_energy, show_number, show_size, show_time

Kind = Literal["summary", "groups", "tokens"]


def rows_of(result: dict[str, Any], kind: Kind = "summary") -> list[dict[str, Any]]:
    """The rows of one result, as the result file holds it.

    Args:
        result: of one run.
        kind: ``summary``, all single numbers in one row; ``groups``, a row for each group of each layer; ``tokens``, a
            row for each token, where they were kept.

    Raises:
        SettingError: there is no such table, or the tokens were not kept.
    """
    told = result["provenance"]
    named = {
        "model": told["model"]["name"], "trace": told["trace"]["name"], "device": told["device"]["name"],
        "policy": told["policy"]["name"], "eviction": told["eviction"]["name"],
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
        f"{what}.{key}": value for what in ("policy", "eviction") for key, value in told[what]["parameters"].items()
    }
    chosen = {f"settings.{key}": value for key, value in told["settings"].items() if not isinstance(value, dict | list)}
    sure = {f"{part}_confidence": told["device"][part].get("confidence") for part in ("flash", "dram")}
    return [named | sure | parameters | chosen | flat]


_FLAT = ("latency_s", "time_s", "busy_s", "energy_by_source_j")


def frame(rows: list[dict[str, Any]]) -> Any:
    """A DataFrame of pandas.

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
    """A table of several results, and what a reader must know to read it right."""
    accurate = any("perplexity" in each for each in results)
    heads = [*_COLUMNS, "energy a token", *(("perplexity", "dense") if accurate else ())]
    body = "".join(
        f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in _cells(each, accurate))}</tr>" for each in results
    )
    notes = dict.fromkeys(note for each in results for note in each["notes"])
    told = "".join(f"<li>{html.escape(note)}</li>" for note in notes)
    head = "".join(f"<th>{html.escape(each)}</th>" for each in heads)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" + (f"<ul>{told}</ul>" if told else "")


def _cells(result: dict[str, Any], accurate: bool) -> list[str]:
    told, tokens, latency = result["provenance"], result["tokens"], result["latency_s"]
    rate, energy = result["hit_rate"], result["energy_j"]
    cells = [
        told["policy"]["name"], told["device"]["name"], show_number(result['throughput_tok_s']),
        f"{show_time(latency['p50'])} / {show_time(latency['p95'])}", "-" if rate is None else f"{rate:.1%}",
        f"{result['mlp_density']:.3f}",
        *(show_size(result[key] / tokens) for key in ("flash_bytes", "dram_bytes")),
        "-" if energy is None else show_energy(energy / tokens),
    ]  # fmt: skip
    if accurate:
        cells += [show_number(result[key]) if key in result else "-" for key in ("perplexity", "dense_perplexity")]
    return cells
