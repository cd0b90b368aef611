"""The summary of the report in words and tables; every number is taken from the results."""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.report.page.inputs import Row
from hwsim.report.runs import settings_of
from hwsim.util.units import show_energy, show_number, show_size, show_time

_HIDDEN = {"model", "trace", "device", "policy"}
COST = 0.5  # perplexity above dense that the answer allows


class Named(NamedTuple):
    """A result with the names that the page uses for it.

    Attributes:
        row: the result.
        number: place in the page, from 1.
        label: policy and the settings that differ between the runs.
        policy: name of the policy.
        device: name of the device.
    """

    row: Row
    number: int
    label: str
    policy: str
    device: str

    @property
    def closed(self) -> bool:
        """Whether the run is of the closed loop, which measures accuracy."""
        return "perplexity" in self.row

    @property
    def oracle(self) -> bool:
        """Whether the policy uses information that no device has, so that the run is only a bound."""
        return bool(self.row["provenance"]["policy"].get("oracle"))

    @property
    def cost(self) -> float:
        """Perplexity above the dense model's."""
        return float(self.row["perplexity"] - self.row["dense_perplexity"])


def name(rows: list[Row]) -> list[Named]:
    """The results with labels that distinguish them; settings that all share are left out."""
    run_settings = [settings_of(row) for row in rows]
    keys = dict.fromkeys(key for settings in run_settings for key in settings if key not in _HIDDEN)
    differ = [key for key in keys if len({settings[key] for settings in run_settings if key in settings}) > 1]
    runs = []
    for number, (row, settings) in enumerate(zip(rows, run_settings, strict=True), 1):
        parts = [
            f"{key} {settings[key]}"
            for key in differ
            if key in settings and not (key == "density" and settings[key] == "1")
        ]
        label = ", ".join([settings["policy"], *parts]) + (" (closed loop)" if "perplexity" in row else "")
        runs.append(Named(row, number, label, settings["policy"], settings["device"]))
    mixed = len({run.closed for run in runs}) > 1
    return runs if mixed else [run._replace(label=run.label.removesuffix(" (closed loop)")) for run in runs]


def answers(found: list[Named]) -> list[str]:
    """A sentence for each device: which run is fastest, and what it costs in accuracy."""
    return [
        _answer(device, [run for run in found if run.device == device])
        for device in dict.fromkeys(e.device for e in found)
    ]


def _answer(device: str, runs: list[Named]) -> str:
    masked = [run for run in runs if run.policy != "dense" and not run.oracle]
    judged = [run for run in masked if run.closed]
    within = [run for run in judged if run.cost <= COST]
    pool = within or judged or masked or runs
    best = max(pool, key=lambda run: run.row["throughput_tok_s"])
    speed = best.row["throughput_tok_s"]
    dense = next((run.row["throughput_tok_s"] for run in runs if run.policy == "dense" and _like(run, best)), None)
    if dense and best.policy != "dense" and dense >= speed:
        text = f"On {device}, nothing beats the dense model's {show_number(dense)} tokens/s; of the others "
        text += f"{best.label} is fastest: {show_number(speed)} tokens/s, {speed / dense:.2g} x of it"
    else:
        text = f"On {device}, {best.label} is fastest: {show_number(speed)} tokens/s"
        if dense and best.policy != "dense":
            text += f", {speed / dense:.2f} x the dense model's {show_number(dense)}"
        elif best.policy != "dense":
            text += " (no dense run of the same DRAM is among these, so whether that is a gain is open)"
    if best.row["hit_rate"] is not None:
        text += f", with a hit rate of {best.row['hit_rate']:.1%}"
    if not judged:
        return f"{text}. What it costs in accuracy is not in these results: hwsim eval measures it."
    lost, without = (show_number(best.row[key]) for key in ("perplexity", "dense_perplexity"))
    price = f"perplexity {lost} against the dense model's {without}"
    if within:
        return (
            f"{text}; {price}. Among {len(judged)} runs whose accuracy was measured, {len(within)} cost at most {COST}."
        )
    return f"{text}; {price}. No run costs at most {COST}: all lose more accuracy than that."


def _like(one: Named, other: Named) -> bool:
    """Whether two runs have the same model and DRAM."""
    first, second = (run.row["provenance"] for run in (one, other))
    return bool(
        first["model"]["name"] == second["model"]["name"]
        and first["settings"]["dram_budget_bytes"] == second["settings"]["dram_budget_bytes"]
    )


HEADS = (
    "run", "device", "tokens/s", "latency p50", "p95", "hit rate", "MLP density", "Flash a token", "DRAM a token",
    "energy a token", "perplexity", "dense", "KL", "top-1",
)  # fmt: skip


def table(found: list[Named]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of all runs; columns that no run fills are left out."""
    cells = [_cells(run) for run in found]
    used = [index for index in range(len(HEADS)) if any(row[index] not in ("", "-") for row in cells)]
    return [HEADS[index] for index in used], [[row[index] for index in used] for row in cells]


def _cells(run: Named) -> list[str]:
    row, tokens = run.row, run.row["tokens"]
    latency, rate, energy = row["latency_s"], row["hit_rate"], row["energy_j"]
    cells = [
        run.label, run.device, show_number(row["throughput_tok_s"]),
        show_time(latency["p50"]), show_time(latency["p95"]),
        "-" if rate is None else f"{rate:.1%}", f"{row['mlp_density']:.3f}", show_size(row["flash_bytes"] / tokens),
        show_size(row["dram_bytes"] / tokens), "-" if energy is None else show_energy(energy / tokens),
    ]  # fmt: skip
    accuracy = ("perplexity", "dense_perplexity", "kl") if run.closed else ()
    cells += [show_number(row[key]) for key in accuracy] or [""] * 3
    return [*cells, f"{row['top1']:.1%}" if run.closed else ""]


def loops(found: list[Named]) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of the table of open against closed loop.

    Each row compares two runs with the same device, policy and settings: a replay of a trace, and a running model.
    """
    open_loops = {_twin(run): run for run in found if not run.closed}
    heads = ["run", "device", "hit rate, open", "closed", "tokens/s, open", "closed", "Flash a token, open", "closed"]
    body = []
    for run in found:
        twin = open_loops.get(_twin(run)) if run.closed else None
        if twin is None:
            continue
        pair = (twin.row, run.row)
        rates = ["-" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}" for row in pair]
        speeds = [show_number(row["throughput_tok_s"]) for row in pair]
        flash = [show_size(row["flash_bytes"] / row["tokens"]) for row in pair]
        body.append([run.label.removesuffix(" (closed loop)"), run.device, *rates, *speeds, *flash])
    return heads, body


def _twin(run: Named) -> str:
    settings = settings_of(run.row)
    return str(sorted((key, value) for key, value in settings.items() if key not in ("trace",)))


def provenance(found: list[Named]) -> list[tuple[str, list[str]]]:
    """The sources of the numbers, as (heading, lines)."""
    origins = [run.row["provenance"] for run in found]
    traces = dict.fromkeys(_trace(origin["trace"]) for origin in origins)
    devices: dict[str, dict[str, Any]] = {origin["device"]["name"]: origin["device"] for origin in origins}
    return [
        ("hwsim", list(dict.fromkeys(str(origin["hwsim"]) for origin in origins))),
        ("Models", list(dict.fromkeys(_model(origin["model"]) for origin in origins))),
        ("Traces and texts", list(traces)),
        ("Devices", [_device(device) for device in devices.values()]),
    ]


def _model(model: dict[str, Any]) -> str:
    return (
        f"{model['name']}: {model['num_hidden_layers']} layers, {model['hidden_size']} / {model['intermediate_size']}"
    )


def _trace(trace: dict[str, Any]) -> str:
    digest = trace.get("hash") or trace.get("provenance", {}).get("tokens_sha256", "")
    return f"{trace['name']} ({trace['origin']})" + (f", {digest[:16]}" if digest else "")


def _device(device: dict[str, Any]) -> str:
    flash, dram = device["flash"], device["dram"]
    parts = [
        f"{name} {part.get('confidence', 'of unknown origin')}: {part.get('source', 'no source')}"
        for name, part in (("Flash", flash), ("DRAM", dram))
    ]
    return f"{device['name']}. {'; '.join(parts)}"


def notes(found: list[Named]) -> list[str]:
    """Notes that a reader needs to interpret the numbers, each once; a note of some runs only names these runs."""
    runs_by_note: dict[str, list[Named]] = {}
    for run in found:
        for note in dict.fromkeys(run.row["notes"]):
            runs_by_note.setdefault(note, []).append(run)
    return [f"{_about(runs, found)}{note}" for note, runs in runs_by_note.items()]


def _about(noted: list[Named], runs: list[Named]) -> str:
    """Prefix that names the runs of a note.

    Empty if the note is about all runs. If the noted runs are all runs of some devices, or of some policies, the names
    of these. Otherwise the label of the one run, or the number of runs.
    """
    if len(noted) == len(runs):
        return ""
    for name in ("device", "policy"):
        names = dict.fromkeys(getattr(run, name) for run in noted)
        if len(noted) == sum(getattr(run, name) in names for run in runs):
            return f"{', '.join(names)}: "
    return f"{noted[0].label}, {noted[0].device}: " if len(noted) == 1 else f"{len(noted)} of {len(runs)} runs: "


def synthetic(found: list[Named]) -> bool:
    """Whether any result is of a synthetic trace."""
    return any(run.row["provenance"]["trace"]["origin"] == "synthetic" for run in found)
