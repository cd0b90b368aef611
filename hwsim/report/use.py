"""How a device was used, in words: reads, prefetch, engine, and costs that were ignored."""

from __future__ import annotations

from typing import Any

from hwsim.util.units import printable, show_size

KEYS = ("reads", "prefetch", "fills", "engine", "ignore", "kv_window", "prefill_chunk")


def use(settings: dict[str, Any]) -> dict[str, str]:
    """The choices in words by the name of the option; "-" if the option was not given.

    Args:
        settings: the settings in a result's provenance.
    """
    words = dict.fromkeys(KEYS, "-") | {key: _words(key, settings[key]) for key in KEYS if settings.get(key)}
    return {key: printable(value) for key, value in words.items()}


def _words(key: str, value: Any) -> str:
    if key == "reads":
        parts = [name for name in ("bundle", "packed") if value[name]]
        if value["merge"] is not None:
            parts.append(f"merge {show_size(value['merge'])}")
            hole = value["gap"]
            parts += ["gap auto"] if hole is None else [f"gap {show_size(hole)}"] if hole else []
        return ", ".join(parts)
    if key == "prefetch":
        return str(value["name"])
    if key == "ignore":
        return ", ".join(value)
    return str(value)


def sentence(settings: dict[str, Any]) -> str:
    """All choices as a text to append to other settings; empty if there are none."""
    chosen = {key: value for key, value in use(settings).items() if value != "-"}
    words = {
        "reads": "reads: {}", "prefetch": "guesses {}", "fills": "fills through DRAM", "engine": "engine {}",
        "ignore": "without {}", "kv_window": "KV window {}", "prefill_chunk": "prefill in chunks of {}",
    }  # fmt: skip
    parts = [words[key].format(value) for key, value in chosen.items()]
    return "".join(f"; {part}" for part in [*parts, *_steps(settings)])


def _steps(settings: dict[str, Any]) -> list[str]:
    """What goes through the model together, and through the caches, where it is not a token of a fresh sequence."""
    words = {
        "cache_scope": "one cache for {}" if settings.get("cache_scope") != "matrix" else "",
        "prefill": "prompts {}",
        "keep_cache": "caches are kept between sequences",
        "lockstep": "{} sequences together",
        "speculate": "{} drafts a step",
        "accept": "accepted: {}",
    }
    values = {"cache_scope": {"layer": "each layer", "global": "all layers"}.get(settings.get("cache_scope", ""))}
    values["prefill"] = {"cached": "go through the caches", "dense": "are read densely"}.get(
        settings.get("prefill", "")
    )
    values |= {key: settings.get(key) for key in ("keep_cache", "lockstep", "speculate", "accept")}
    return [text.format(printable(str(values[key]))) for key, text in words.items() if values[key] is not None and text]
