"""What a reader wants to know first, in words and tables; every number is one of the results."""

from __future__ import annotations

from typing import Any, NamedTuple

from hwsim.report.page.inputs import Row
from hwsim.report.runs import settings_of
from hwsim.util.units import show_energy, show_number, show_size, show_time

_HIDDEN = {"model", "trace", "device", "policy"}
COST = 0.5  # perplexity above dense that the answer allows


class Named(NamedTuple):
    """A result and how the page calls it.

    Attributes:
        number: from 1, its place in the page.
        label: policy and what differs between the runs.
        policy: its name.
        device: its name.
    """

    row: Row
    number: int
    label: str
    policy: str
    device: str

    @property
    def closed(self) -> bool:
        """Whether accuracy was measured."""
        return "perplexity" in self.row

    @property
    def oracle(self) -> bool:
        """Whether its masks need what no device knows: a bound, and no answer."""
        return bool(self.row["provenance"]["policy"].get("oracle"))

    @property
    def cost(self) -> float:
        """Perplexity above the dense model's."""
        return float(self.row["perplexity"] - self.row["dense_perplexity"])


def name(rows: list[Row]) -> list[Named]:
    """The results with labels that tell them apart: settings that all share are left out."""
    told = [settings_of(row) for row in rows]
    keys = dict.fromkeys(key for each in told for key in each if key not in _HIDDEN)
    differ = [key for key in keys if len({each[key] for each in told if key in each}) > 1]
    found = []
    for number, (row, each) in enumerate(zip(rows, told, strict=True), 1):
        parts = [f"{key} {each[key]}" for key in differ if key in each and not (key == "density" and each[key] == "1")]
        label = ", ".join([each["policy"], *parts]) + (" (closed loop)" if "perplexity" in row else "")
        found.append(Named(row, number, label, each["policy"], each["device"]))
    mixed = len({each.closed for each in found}) > 1
    return found if mixed else [each._replace(label=each.label.removesuffix(" (closed loop)")) for each in found]


def answers(found: list[Named]) -> list[str]:
    """For each device, which run is fastest, and at what price."""
    return [
        _answer(device, [each for each in found if each.device == device])
        for device in dict.fromkeys(e.device for e in found)
    ]


def _answer(device: str, found: list[Named]) -> str:
    masked = [each for each in found if each.policy != "dense" and not each.oracle]
    judged = [each for each in masked if each.closed]
    within = [each for each in judged if each.cost <= COST]
    pool = within or judged or masked or found
    best = max(pool, key=lambda each: each.row["throughput_tok_s"])
    speed = best.row["throughput_tok_s"]
    dense = next((each.row["throughput_tok_s"] for each in found if each.policy == "dense" and _like(each, best)), None)
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
    first, second = (each.row["provenance"] for each in (one, other))
    return bool(
        first["model"]["name"] == second["model"]["name"]
        and first["settings"]["dram_budget_bytes"] == second["settings"]["dram_budget_bytes"]
    )


HEADS = (
    "run", "device", "tokens/s", "latency p50", "p95", "hit rate", "MLP density", "Flash a token", "DRAM a token",
    "energy a token", "perplexity", "dense", "KL", "top-1",
)  # fmt: skip


def table(found: list[Named]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the table of all runs; columns that no run fills are left out."""
    cells = [_cells(each) for each in found]
    used = [index for index in range(len(HEADS)) if any(row[index] not in ("", "-") for row in cells)]
    return [HEADS[index] for index in used], [[row[index] for index in used] for row in cells]


def _cells(each: Named) -> list[str]:
    row, tokens = each.row, each.row["tokens"]
    latency, rate, energy = row["latency_s"], row["hit_rate"], row["energy_j"]
    cells = [
        each.label, each.device, show_number(row["throughput_tok_s"]),
        show_time(latency["p50"]), show_time(latency["p95"]),
        "-" if rate is None else f"{rate:.1%}", f"{row['mlp_density']:.3f}", show_size(row["flash_bytes"] / tokens),
        show_size(row["dram_bytes"] / tokens), "-" if energy is None else show_energy(energy / tokens),
    ]  # fmt: skip
    accuracy = ("perplexity", "dense_perplexity", "kl") if each.closed else ()
    cells += [show_number(row[key]) for key in accuracy] or [""] * 3
    return [*cells, f"{row['top1']:.1%}" if each.closed else ""]


def loops(found: list[Named]) -> tuple[list[str], list[list[str]]]:
    """Open against closed loop: runs with the same device, policy and settings, of a trace and of a running model."""
    opened = {_twin(each): each for each in found if not each.closed}
    heads = ["run", "device", "hit rate, open", "closed", "tokens/s, open", "closed", "Flash a token, open", "closed"]
    body = []
    for each in found:
        twin = opened.get(_twin(each)) if each.closed else None
        if twin is None:
            continue
        pair = (twin.row, each.row)
        rates = ["-" if row["hit_rate"] is None else f"{row['hit_rate']:.1%}" for row in pair]
        speeds = [show_number(row["throughput_tok_s"]) for row in pair]
        flash = [show_size(row["flash_bytes"] / row["tokens"]) for row in pair]
        body.append([each.label.removesuffix(" (closed loop)"), each.device, *rates, *speeds, *flash])
    return heads, body


def _twin(each: Named) -> str:
    told = settings_of(each.row)
    return str(sorted((key, value) for key, value in told.items() if key not in ("trace",)))


def provenance(found: list[Named]) -> list[tuple[str, list[str]]]:
    """Where the numbers are from: (heading, lines)."""
    told = [each.row["provenance"] for each in found]
    traces = dict.fromkeys(_trace(each["trace"]) for each in told)
    devices: dict[str, dict[str, Any]] = {each["device"]["name"]: each["device"] for each in told}
    return [
        ("hwsim", list(dict.fromkeys(str(each["hwsim"]) for each in told))),
        ("Models", list(dict.fromkeys(_model(each["model"]) for each in told))),
        ("Traces and texts", list(traces)),
        ("Devices", [_device(each) for each in devices.values()]),
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
    """What a reader must know to read the numbers right, each once, with the runs it is about where not with all."""
    told: dict[str, list[Named]] = {}
    for each in found:
        for note in dict.fromkeys(each.row["notes"]):
            told.setdefault(note, []).append(each)
    return [f"{_about(those, found)}{note}" for note, those in told.items()]


def _about(those: list[Named], found: list[Named]) -> str:
    """Which runs a note is about: nothing for all, the device or the policy that they have alone, else how many."""
    if len(those) == len(found):
        return ""
    for name in ("device", "policy"):
        names = dict.fromkeys(getattr(each, name) for each in those)
        if len(those) == sum(getattr(each, name) in names for each in found):
            return f"{', '.join(names)}: "
    return f"{those[0].label}, {those[0].device}: " if len(those) == 1 else f"{len(those)} of {len(found)} runs: "


def synthetic(found: list[Named]) -> bool:
    """Whether a result is of a synthetic trace."""
    return any(each.row["provenance"]["trace"]["origin"] == "synthetic" for each in found)
