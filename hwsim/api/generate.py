"""Write `functions.py`: the functions of the Python interface, with each option of `Settings` by name and type.

    python -m hwsim.api.generate

The code is generated because editors, type checkers and `inspect.signature` need signatures that are written out.
"""

from __future__ import annotations

from collections.abc import Iterable
from json import dumps
from pathlib import Path
from textwrap import fill, indent

from hwsim.simulation.settings import Settings
from hwsim.util.option import Declared, declared

FILE = Path(__file__).with_name("functions.py")
_WIDTH = 112

_HEAD = '''"""Written by `python -m hwsim.api.generate` from the options that `Settings` declares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, overload

from hwsim.api.interface import Asked, PolicyLike, Results, closed_loops, replays
from hwsim.cache.unit_sets import UnitSets
from hwsim.device.profile import Profile
from hwsim.evictions import Eviction
from hwsim.memory.neuron_order import Layout
from hwsim.memory.shares import Shares
from hwsim.model.shape import Bits
from hwsim.prefetch import Prefetch
from hwsim.simulation.metrics import Evaluation, Result
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
'''

_REPLAY_DOC = """Replay a trace on a device under a policy, as ``hwsim replay`` does.

Args:
    trace: open, or its file.
    hw: name or file of a profile, or a profile.
    policy: one, or a list of several.
    density: MLP density, or a file of one for each layer; for those policies that have one.
    eviction: what picks the units that leave a full cache.
    threads: number of worker threads; None: all cores. The result does not depend on it.
{options}
    parameters: of the policies, as with ``--set``.

Returns:
    A result; of a list of policies a list of results.

Raises:
    HwsimError: something is missing, unknown or impossible; the text is that of the command line.
"""

_LOOP_DOC = """Run a model under a policy with the cache in the loop, as ``hwsim eval`` does.

Args:
    model: a short name, hub id, folder or GGUF file.
    hw: name or file of a profile, or a profile.
    policy: one, or a list of several.
    text: a file, or the name of a bundled text.
    tokens: of the text.
    context: tokens of a window.
    prompt: first tokens of each window that are no part of the decode.
    density: MLP density, or a file of one for each layer; for those policies that have one.
    eviction: what picks the units that leave a full cache.
    device: of torch.
    dtype: of torch, or auto.
    trust_remote_code: whether code that the model brings along may run.
{options}
    parameters: of the policies, as with ``--set``.

Returns:
    A result; of a list of policies a list of results.

Raises:
    HwsimError: as `replay`; torch and transformers are missing, or the model cannot be had.
"""

_DENSITY = ("density", "float | str | Path | None", "None")
_EVICTION = ("eviction", "str | Path | type[Eviction] | Eviction", '"lfu"')
_ONE, _SEVERAL = "PolicyLike", "Sequence[PolicyLike]"

Parameter = tuple[str, str, str]
"""Name, annotation and default."""


def source(model: type[Settings] = Settings) -> str:
    """Return the text of `functions.py`.

    Args:
        model: the class that declares the options.
    """
    options = list(declared(model).values())
    replay = [_DENSITY, _EVICTION, ("threads", "int | None", "None")]
    loop = [
        ("text", "str | Path", '"persuasion"'), ("tokens", "int", "2048"), ("context", "int", "512"),
        ("prompt", "int", "0"), _DENSITY, _EVICTION, ("device", "str", '"cpu"'), ("dtype", "str", '"auto"'),
        ("trust_remote_code", "bool", "False"),
    ]  # fmt: skip
    head = _HEAD
    if model is not Settings:
        head = head.replace("hwsim.simulation.settings import Settings", f"{model.__module__} import {model.__name__}")
    parts = [head]
    for name, first, own, doc, body, result in (
        ("replay", "trace: Trace | str | Path", replay, _REPLAY_DOC, "replays(trace, asked, threads)", "Result"),
        ("closed_loop", "model: str | Path", loop, _LOOP_DOC, _CLOSED_LOOP, "Evaluation"),
    ):
        entries = [*own, *((option.name, option.python_type, _literal(option.plain_default)) for option in options)]
        parts += [
            f"@overload\n{_signature(name, first, _ONE, entries, result, stub=True)}\n",
            f"@overload\n{_signature(name, first, _SEVERAL, entries, f'Results[{result}]', stub=True)}\n",
            f"{_signature(name, first, f'{_ONE} | {_SEVERAL}', entries, f'{result} | Results[{result}]', stub=False)}\n"
            + indent(f'"""{doc.format(options=_described(options))}"""\n', "    ", lambda line: bool(line.strip()))
            + indent(f"{_settings(options, model.__name__)}\n", "    ")
            + "    asked = Asked(hw, policy, density, eviction, settings, parameters)\n"
            + f"    results = {body}\n"
            + "    return results if asked.several else results[0]\n",
        ]
    return "\n\n".join(parts)


_CLOSED_LOOP = "closed_loops(model, text, asked, (tokens, context, prompt, device, dtype, trust_remote_code))"


def _signature(name: str, first: str, policy: str, own: Iterable[Parameter], result: str, *, stub: bool) -> str:
    """The head of a function; defaults in an overload (`stub`) are dots."""
    words = [first, "hw: str | Path | Profile", f"policy: {policy}", "*"]
    words += [f"{key}: {kind} = {'...' if stub else default}" for key, kind, default in own]
    lines = _lines([*words, "**parameters: Any"])
    return f"def {name}(\n{lines}\n) -> {result}:" + (" ...  # fmt: skip" if stub else "  # fmt: skip")


def _settings(options: list[Declared], model: str) -> str:
    return f"settings = {model}(\n{_lines([f'{option.name}={option.name}' for option in options])}\n)  # fmt: skip"


def _literal(value: object) -> str:
    return dumps(value) if isinstance(value, str) else repr(value)


def _lines(words: list[str]) -> str:
    """The words separated by commas, filled into indented lines."""
    lines, line = [], ""
    for word in words:
        if line and len(line) + len(word) + 2 > _WIDTH:
            lines.append(line)
            line = ""
        line += f"{' ' if line else ''}{word},"
    return indent("\n".join([*lines, line]), "    ")


def _described(options: list[Declared]) -> str:
    """The docstring's lines that describe the options."""
    return "\n".join(
        fill(f"{option.name}: {option.option.help}", _WIDTH, initial_indent="    ", subsequent_indent="        ")
        for option in options
    )


if __name__ == "__main__":
    FILE.write_text(source(), encoding="utf-8")
