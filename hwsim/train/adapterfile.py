"""The folder of an adapter during its training; interrupted runs lose little and leave nothing half-written.

A training writes to ``NAME.partial`` beside the folder: its description (`hwsim.json`) and, every few steps, a state
to resume from. The finished adapter is written there, too, and the folder gets its name in one step.
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
from hwsim.util.files import is_at, lock, write_atomic

_STATE = "state.pt"


def _read(folder: Path) -> dict[str, Any] | None:
    """The description in an adapter's folder; None if `hwsim train lora` did not write it."""
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return about if isinstance(about, dict) and about.get("format") == "hwsim-lora" else None


def _differences(ours: dict[str, Any], theirs: dict[str, Any], prefix: str = "") -> list[str]:
    """The differences between two descriptions, in words: ``training.rank 8, now 16``."""
    lines = []
    for key, value in ours.items():
        old = theirs.get(key)
        if isinstance(value, dict) and isinstance(old, dict):
            lines += _differences(value, old, f"{prefix}{key}.")
        elif value != old:
            lines.append(f"{prefix}{key} {old}, now {value}")
    return lines


def finished(folder: Path, about: dict[str, Any], *, overwrite: bool) -> dict[str, Any] | None:
    """The results of a finished training of exactly this adapter; None if it has not been trained yet.

    Raises:
        OutputError: the folder holds something else, or cannot be written.
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
    """The folder in which an adapter is trained, beside its own."""
    return folder.resolve().with_name(folder.resolve().name + ".partial")


class Partial:
    """An unfinished training; use as a context manager.

    Args:
        folder: of the finished adapter.
        about: description of everything that decides the adapter.
        overwrite: begin anew if a training with other settings was begun, and replace an existing folder at the end.

    Raises:
        OutputError: a training with other settings was begun here, or the folder cannot be written.
    """

    def __init__(self, folder: Path, about: dict[str, Any], *, overwrite: bool) -> None:
        self._folder, self._about, self._overwrite = folder, about, overwrite
        self.path = partial_of(folder)
        if self.path.exists() and _read(self.path) is None:
            raise OutputError(f"{self.path}: is in the way and is no unfinished training; move it, or name another -o")
        self._is_another()

    def _is_another(self) -> bool:
        """Whether the folder holds a training with other settings, which may be replaced.

        Raises:
            OutputError: it may not be replaced.
        """
        stored = _read(self.path)
        differences = _differences(self._about, stored) if stored else []
        if differences and not self._overwrite:
            raise OutputError(
                f"{self.path}: was begun with other settings ({differences[0]}); give the same ones to go on, "
                "--overwrite to begin anew, or another -o"
            )
        return bool(differences)

    def __enter__(self) -> Partial:
        """Make the folder, lock it and, only then, delete an old training in it."""
        try:
            self.path.mkdir(exist_ok=True)
            self._lock = os.open(self.path, os.O_RDONLY)
            alone = self._try_lock()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error
        try:
            # a process that held the lock until now may have finished, which renames or deletes the folder
            if not alone or not is_at(self._lock, self.path):
                raise OutputError(f"{self.path}: another process is training there; wait for it, or name another -o")
            if self._is_another():
                self._empty()
            write_atomic(self.path / ABOUT, _text(self._about))
        except BaseException:
            os.close(self._lock)
            raise
        return self

    def _empty(self) -> None:
        """Delete what is in the folder; the folder stays, because the lock is on it."""
        try:
            for path in self.path.iterdir():
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()
        except OSError as error:
            raise OutputError(f"{self.path}: cannot be written: {error.strerror or one_line(error)}") from error

    def _try_lock(self) -> bool:
        """Whether this process could lock the folder; if locking is impossible, an empty folder is removed."""
        try:
            return lock(self._lock)
        except OSError:
            os.close(self._lock)
            with contextlib.suppress(OSError):  # a folder that is not empty stays: a training can resume from it
                self.path.rmdir()
            raise

    def __exit__(self, *error: object) -> None:
        """Keep the folder if it has a state to resume from."""
        if self.path.exists() and not (self.path / _STATE).exists():
            shutil.rmtree(self.path)
        os.close(self._lock)

    def state(self, torch: Any) -> dict[str, Any] | None:
        """The saved state of an earlier run; None if there is none.

        Raises:
            OutputError: the state cannot be read.
        """
        file = self.path / _STATE
        if not file.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:
            if self._overwrite:
                return None
            raise OutputError(f"{file}: is damaged: {one_line(error)[:120]}; give --overwrite to begin anew") from error
        return state

    def save(self, torch: Any, state: dict[str, Any]) -> None:
        """Save a state in one step: a kill leaves the old one or the new one.

        Raises:
            OutputError: it cannot be written.
        """
        temporary = self.path / f".{_STATE}"
        try:
            torch.save(state, temporary)
            temporary.replace(self.path / _STATE)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
            raise OutputError(f"{self.path}: cannot be written: {one_line(error)[:120]}") from error

    def finish(self, wrapped: Any, done: dict[str, Any]) -> None:
        """Write the adapter and give the folder its name.

        Args:
            wrapped: model of peft.
            done: results of the training.

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
    """Sort the lists of names in a config: peft keeps them as sets, so their order changes between processes."""
    fields = json.loads(config.read_text())
    for key, value in fields.items():
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            fields[key] = sorted(value)
    write_atomic(config, _text(fields))


def _text(about: dict[str, Any]) -> str:
    return json.dumps(about, indent=2, sort_keys=True) + "\n"
