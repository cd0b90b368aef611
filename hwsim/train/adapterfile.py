"""The folder of an adapter while it is trained, and what makes it whole: nothing is left half-written, nothing is lost.

A training writes to ``NAME.partial`` beside the folder: what it is (`hwsim.json`) and, every few steps, a state to go
on from. The finished adapter is written there, too, and the folder gets its name in one step.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from hwsim.errors import OutputError, one_line
from hwsim.model.lora import ABOUT
from hwsim.util.files import lock, write_atomic

_STATE = "state.pt"


def _read(folder: Path) -> dict[str, Any] | None:
    """What a folder says of itself; None where it is none of ours."""
    try:
        found = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and found.get("format") == "hwsim-lora" else None


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """In words, what two descriptions do not share: ``training.rank 8, now 16``."""
    found = []
    for key, one in ours.items():
        other = theirs.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += _differences(one, other, f"{prefix}{key}.")
        elif one != other:
            found.append(f"{prefix}{key} {other}, now {one}")
    return found


def finished(folder: Path, about: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """What an earlier, finished training of exactly this adapter found; None: it is still to be done.

    Raises:
        OutputError: something else is there, or the place cannot be written.
    """
    if not folder.resolve().parent.is_dir():
        raise OutputError(f"{folder}: cannot be written: the folder {folder.parent} does not exist")
    if not os.access(folder.resolve().parent, os.W_OK):
        raise OutputError(f"{folder}: cannot be written: permission denied in the folder {folder.resolve().parent}")
    if not folder.exists():
        return None
    theirs = _read(folder)
    if theirs is None:
        raise OutputError(f"{folder}: exists and is no adapter of `hwsim train lora`; name another folder with -o")
    if overwrite:
        return None
    if differences := _differences(about, theirs):
        raise OutputError(
            f"{folder}: holds another adapter ({differences[0]}); name another folder with -o, or give --overwrite"
        )
    if "done" not in theirs:
        raise OutputError(f"{folder}: is an unfinished training; give the -o that it was begun with, or another")
    return dict(theirs["done"])


def partial_of(folder: Path) -> Path:
    """Where an adapter is trained, beside its folder."""
    return folder.resolve().with_name(folder.resolve().name + ".partial")


class Partial:
    """A training that is under way.

    Args:
        folder: the adapter's, as it will be called.
        about: what decides the adapter.
        overwrite: begin anew where something else was begun, and replace what is there in the end.

    Raises:
        OutputError: something else was begun here, or the place cannot be written.
    """

    def __init__(self, folder: Path, about: dict[str, Any], *, overwrite: bool) -> None:
        self._folder, self._about, self._overwrite = folder, about, overwrite
        self.path = partial_of(folder)
        there = _read(self.path) if self.path.exists() else None
        if self.path.exists() and there is None:
            raise OutputError(f"{self.path}: is in the way and is no unfinished training; move it, or name another -o")
        if there and (differences := _differences(about, there)):
            if not overwrite:
                raise OutputError(
                    f"{self.path}: was begun with other settings ({differences[0]}); give the same ones to go on, "
                    "--overwrite to begin anew, or another -o"
                )
            shutil.rmtree(self.path)

    def __enter__(self) -> Partial:
        """Make room."""
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            alone = self._try_lock()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error
        if not alone:
            os.close(self._lock)
            raise OutputError(f"{self.path}: another process is training there; wait for it, or name another -o")
        write_atomic(self.path / ABOUT, _text(self._about))
        return self

    def _try_lock(self) -> bool:
        """Whether this process is alone; where that cannot be known, an empty folder does not stay in the way."""
        try:
            return lock(self._lock)
        except OSError:
            os.close(self._lock)
            with contextlib.suppress(OSError):  # it is not empty: there is a training to go on from
                self.path.rmdir()
            raise

    def __exit__(self, *error: object) -> None:
        """What is there stays: the same training goes on from it."""
        if self.path.exists() and not (self.path / _STATE).exists():
            shutil.rmtree(self.path)
        os.close(self._lock)

    def state(self, torch: Any) -> dict[str, Any] | None:
        """Where an earlier run was; None: at the beginning.

        Raises:
            OutputError: it cannot be read.
        """
        file = self.path / _STATE
        if not file.exists():
            return None
        try:
            found: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:
            if self._overwrite:
                return None
            raise OutputError(f"{file}: is damaged: {one_line(error)[:120]}; give --overwrite to begin anew") from error
        return found

    def save(self, torch: Any, state: dict[str, Any]) -> None:
        """Keep a state in one step."""
        fresh = self.path / f".{_STATE}"
        try:
            torch.save(state, fresh)
            fresh.replace(self.path / _STATE)
        except (OSError, RuntimeError) as error:  # torch tells a full disk as a RuntimeError
            raise OutputError(f"{self.path}: cannot be written: {one_line(error)[:120]}") from error

    def finish(self, wrapped: Any, done: dict[str, Any]) -> None:
        """Write the adapter and give the folder its name.

        Args:
            wrapped: model of peft.
            done: what the training found.

        Raises:
            OutputError: it cannot be written.
        """
        whole = self.path / "whole"
        try:
            shutil.rmtree(whole, ignore_errors=True)
            wrapped.save_pretrained(whole)
            (whole / "README.md").unlink(missing_ok=True)  # peft's empty model card
            _in_order(whole / "adapter_config.json")
            write_atomic(whole / ABOUT, _text(self._about | {"done": done}))
            target = self._folder.resolve()
            old = self.path / "replaced"
            if target.exists():
                target.replace(old)
            whole.replace(target)
            shutil.rmtree(self.path)
        except OSError as error:
            raise OutputError(f"{self._folder}: cannot be written: {error.strerror or one_line(error)}") from error


def _in_order(config: Path) -> None:
    """peft keeps the names of modules as a set, so their order in the file is another one in each process."""
    known = json.loads(config.read_text())
    for key, value in known.items():
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            known[key] = sorted(value)
    write_atomic(config, _text(known))


def _text(about: dict[str, Any]) -> str:
    return json.dumps(about, indent=2, sort_keys=True) + "\n"
