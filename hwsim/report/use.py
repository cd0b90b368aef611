"""How a device was used, in words: what a result tells of reads, guesses, engines and what was left out."""

from __future__ import annotations

from typing import Any

from hwsim.util.units import printable, show_size

KEYS = ("reads", "prefetch", "fills", "engine", "ignore", "kv_window", "prefill_chunk")


def use(settings: dict[str, Any]) -> dict[str, str]:
    """Each choice by the name of its option; - where none was made.

    Args:
        settings: of a result's provenance, which holds what was chosen.
    """
    found = dict.fromkeys(KEYS, "-") | {key: _words(key, settings[key]) for key in KEYS if settings.get(key)}
    return {key: printable(value) for key, value in found.items()}


def _words(key: str, value: Any) -> str:
    if key == "reads":
        said = [name for name in ("bundle", "packed") if value[name]]
        if value["merge"] is not None:
            said.append(f"merge {show_size(value['merge'])}")
            hole = value["gap"]
            said += ["gap auto"] if hole is None else [f"gap {show_size(hole)}"] if hole else []
        return ", ".join(said)
    if key == "prefetch":
        return str(value["name"])
    if key == "ignore":
        return ", ".join(value)
    return str(value)


def sentence(settings: dict[str, Any]) -> str:
    """All that was chosen, to be put behind other settings; empty: nothing was."""
    said = {key: value for key, value in use(settings).items() if value != "-"}
    words = {
        "reads": "reads: {}", "prefetch": "guesses {}", "fills": "fills through DRAM", "engine": "engine {}",
        "ignore": "without {}", "kv_window": "KV window {}", "prefill_chunk": "prefill in chunks of {}",
    }  # fmt: skip
    return "".join(f"; {words[key].format(value)}" for key, value in said.items())
