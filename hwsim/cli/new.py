"""``hwsim plugin new-policy`` and ``hwsim plugin new-eviction``: a starting file that works, and its test."""

from __future__ import annotations

import importlib.util
import keyword
import re
import shlex
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from hwsim.cli.common import JsonOption, check_target, is_file, output, to_json, write_json
from hwsim.errors import OutputError, SettingError, one_line
from hwsim.util.files import write_atomic
from hwsim.util.units import printable, shorten

_SPECIAL = ("conftest", "setup", "test")  # names that Python's tools give a meaning to

Name = Annotated[str, typer.Argument(help="Name of the file, and of what it defines: a lower-case Python name.")]
Folder = Annotated[
    Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where to write; made if it is missing.")
]
Package = Annotated[
    bool, typer.Option("--package", help="Write a pyproject.toml, too, so that the folder can be installed.")
]


@dataclass(frozen=True)
class _Starter:
    """A kind of starting file."""

    kind: str  # policy or eviction
    what: str
    group: str  # of the entry points
    replay: str  # a replay in which it matters, without the command
    part: str  # name of the text that it starts from


_POLICY = _Starter("policy", "A policy", "hwsim.policies", "sample --hw pixel8 --dram 90% --policy {}", "policy")
# the sample has no experts: TRACE stands for a trace that has some
_EXPERTS = _Starter("policy", "A policy", "hwsim.policies", "TRACE --hw pixel8 --dram 50% --policy {}", "experts")
_EVICTION = _Starter(
    "eviction", "An eviction rule", "hwsim.evictions",
    "sample --hw pixel8 --dram 80% --policy dip --density 0.4 --eviction {}", "eviction",
)  # fmt: skip


def new_policy(
    name: Name,
    folder: Folder = Path(),
    experts: Annotated[
        bool, typer.Option("--experts", help="Write a policy that decides which experts of a layer are read.")
    ] = False,
    package: Package = False,
    json: JsonOption = None,
) -> None:
    """Write a policy that works, and its test, to start from. Nothing that is there is overwritten.

    Example: hwsim plugin new-policy mine
    """
    _write(_EXPERTS if experts else _POLICY, name, folder, json, package=package)


def new_eviction(name: Name, folder: Folder = Path(), package: Package = False, json: JsonOption = None) -> None:
    """Write an eviction rule that works, and its test, to start from. Nothing that is there is overwritten.

    Example: hwsim plugin new-eviction mine
    """
    _write(_EVICTION, name, folder, json, package=package)


def _write(starter: _Starter, name: str, folder: Path, json: str | None, *, package: bool) -> None:
    """Write the files, all or none, and print what to type next."""
    if is_file(folder / f"{name}.py"):  # otherwise the error would be that Python finds a module of this name
        _check_folder(folder, [f"{name}.py"])
    files = _files(starter, name, package=package)
    _check_folder(folder, files)
    check_target(json, *(folder / file for file in files))
    for file, text in files.items():
        write_atomic(folder / file, text)
    where = "" if folder == Path() else f"{folder}/"
    if json:
        following = _next(starter, name, where, package=package)
        write_json(json, to_json({"kind": starter.kind, "name": name, "files": list(files), "next": following}))
    if json == "-":
        return
    console = output()
    for file in files:
        console.print(f"wrote {printable(where)}{file}", markup=False)
    console.print("\nnext:", markup=False)
    for command in _next(starter, name, where, package=package):
        console.print(f"  {command}", markup=False, soft_wrap=True)


def _next(starter: _Starter, name: str, where: str, *, package: bool) -> list[str]:
    """The commands to type next: install it (if it is a package), check it, test it, replay with it."""
    install = [f"python -m pip install -e {shlex.quote(where or '.')}"] if package else []
    spec = name.replace("_", "-") if package else shlex.quote(f"{where or './'}{name}.py")
    return [
        *install,
        f"hwsim plugin check {spec}",
        "python -m pytest " + shlex.quote(f"{where}test_{name}.py"),
        f"hwsim replay {starter.replay.format(spec)}",
    ]


def _files(starter: _Starter, name: str, *, package: bool) -> dict[str, str]:
    """The files to write: text by file name.

    Raises:
        SettingError: no file, class or plug-in can have this name.
    """
    _check_name(starter, name)
    parts = {f"{name}.py": starter.part, f"test_{name}.py": f"test_{starter.part}"}
    if package:
        parts["pyproject.toml"] = "pyproject"
    texts = {file: _text(part) for file, part in parts.items()}
    class_name = "".join(part.capitalize() for part in name.split("_"))
    if any(re.search(rf"\b{class_name}\b", text) for text in texts.values()):
        raise _refusal(starter, name, f"its class would be {class_name}, a name that the file itself needs")
    words = {
        "name": name, "Class": class_name, "dashed": name.replace("_", "-"), "What": starter.what,
        "group": starter.group, "option": f"--{starter.kind}",
    }  # fmt: skip
    return {file: re.sub(r"@(\w+)@", lambda match: words[match[1]], text) for file, text in texts.items()}


def _text(part: str) -> str:
    return (Path(__file__).parent / "starters" / f"{part}.txt").read_text(encoding="utf-8")


def _check_name(starter: _Starter, name: str) -> None:
    from hwsim.simulation.plugins import EVICTIONS, POLICIES

    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        near = re.sub(r"[^a-z0-9_]+", "_", name.lower()).strip("_0123456789")
        hint = f", such as {near}" if near and len(near) <= 60 else ""
        raise _refusal(starter, name, f"must be a Python name of lower-case letters, digits and _{hint}")
    if keyword.iskeyword(name) or keyword.issoftkeyword(name):
        raise _refusal(starter, name, "is a word of Python's own")
    origin = (EVICTIONS if starter is _EVICTION else POLICIES).names().get(name.replace("_", "-"))
    if origin:
        raise _refusal(starter, name, f"there is {starter.what.lower()} of that name: {origin}")
    if name in _SPECIAL or name in sys.stdlib_module_names or importlib.util.find_spec(name):
        raise _refusal(starter, name, "is a module that Python knows already, and your file would hide it")


def _refusal(starter: _Starter, name: str, rule: str) -> SettingError:
    return SettingError(f"new-{starter.kind} {shorten(printable(name))}: {rule}; choose another name")


def _check_folder(folder: Path, files: Iterable[str]) -> None:
    """Make the folder if it is missing, and refuse files that exist.

    Raises:
        OutputError: a file exists, or the folder cannot be made.
    """
    try:
        for file in files:
            if (folder / file).exists() or (folder / file).is_symlink():
                raise OutputError(
                    f"{folder / file}: is there already, and is not overwritten; choose another name or -o"
                )
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OutputError(f"{folder}: cannot be written: {reason}") from error
