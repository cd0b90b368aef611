"""Writing files so that nothing is left half-written, and finding the data that comes with hwsim."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hwsim.errors import OutputError, one_line


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` beside `path` and move it there in one step: readers see the old file or the new one.

    Raises:
        OutputError: the folder is missing or cannot be written.
    """
    if isinstance(data, str):
        data = data.encode()
    temporary: str | None = None
    try:
        # a device such as /dev/stdout cannot be replaced, and must not be
        if path.exists() and not path.is_file():
            path.write_bytes(data)
            return
        target = path.resolve()  # through a link: the link stays, its target is replaced
        handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        mode = target.stat().st_mode & 0o777 if target.exists() else 0o666 & ~_umask()
        Path(temporary).chmod(mode)
        Path(temporary).replace(target)
        temporary = None
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or one_line(error)}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def sweep(path: Path) -> None:
    """Delete what `write_atomic` left beside a file because it was killed; only where nobody else writes it now."""
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}"):
        left.unlink(missing_ok=True)


def check_new_file(path: Path) -> None:
    """Whether a file may be made, or replaced, at `path`: only a regular file is ever replaced.

    Raises:
        OutputError: the folder is missing or may not be written to, or a folder, a device, a pipe or such is there.
    """
    try:
        if path.is_dir():
            raise OutputError(f"{path}: cannot be written: it is a folder; name a file")
        if not path.parent.is_dir():
            raise OutputError(f"{path}: cannot be written: the folder {path.parent} does not exist")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path}: cannot be written: it is there and is no regular file; name another")
        if not os.access(path.parent, os.W_OK):
            raise OutputError(f"{path}: cannot be written: permission denied in the folder {path.parent}")
        path.lstat()  # tells names that no file can have
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OutputError(f"{path}: cannot be written: {reason}") from error


def keep_strangers(path: Path, *beginnings: str) -> None:
    """Refuse to replace a file that is not of the kind that is going to be written: it is likely not meant.

    Args:
        path: of the file.
        beginnings: with one of these a file of that kind begins, after spaces, in any case.

    Raises:
        OutputError: there is another file, and it is not empty.
    """
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return
        with path.open("rb") as file:
            start = file.read(256).lstrip().lower()
    except (OSError, ValueError):  # what cannot be read is not replaced without a word: writing tells
        return
    if not start.startswith(tuple(each.lower().encode() for each in beginnings)):
        kinds = " or ".join(each.strip() for each in beginnings)
        raise OutputError(
            f"{path}: exists, is no output of this kind (it does not begin with {kinds}), and would be lost; name "
            "another file, or delete it first"
        )


def spare(target: Path, sources: Iterable[Path], does: str = "reads") -> None:
    """Refuse a target that is one of the files that a command reads, or writes besides, under whatever name.

    Raises:
        OutputError: it is one of them.
    """
    for source in sources:
        try:
            same = target.samefile(source) if target.exists() and source.exists() else False
            same = same or target.resolve() == source.resolve()
        except (OSError, ValueError):  # a name that no file can have is none that is read
            continue
        if same:
            raise OutputError(f"{target}: cannot be written: the command {does} it; choose another name")


def lock(handle: int) -> bool:
    """Lock an open file or folder for this process until it is closed, and return whether that succeeded.

    It returns False, without waiting, where another process holds the lock. The system releases the lock of a process
    that ends, however it ends.

    Raises:
        OSError: the file system has no locks.
    """
    # The lock is on the file that is written, by its descriptor. filelock's `FileLock` takes a path, and so needs a
    # lock file: in its older versions it empties the file it locks, and on Unix it never deletes it, because a process
    # that deletes a lock file lets another one lock the deleted file while a third locks a new one. Here a file
    # may be deleted or renamed by the process that holds it, before it lets go; whoever gets the lock afterwards asks
    # `is_at` whether it is still the file of that name.
    from filelock import lock_descriptor  # noqa: PLC0415

    return lock_descriptor(handle, blocking=False)


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at `path`: its last holder may have deleted or renamed it meanwhile."""
    try:
        return os.path.samestat(path.stat(), os.fstat(handle))
    except FileNotFoundError:
        return False


def _umask() -> int:
    """The process's umask, which can only be read by setting it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def data_folder(name: str) -> Path:
    """The folder of data that comes with hwsim: ``hw_profiles`` or ``traces``.

    In a wheel it lies inside the package; in a clone or an editable install beside it.
    """
    package = Path(__file__).resolve().parent.parent
    inside = package / "_data" / name
    return inside if inside.is_dir() else package.parent / name
