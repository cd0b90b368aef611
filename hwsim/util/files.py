"""Write files so that none is left half-written, and find the data that comes with hwsim."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path

from hwsim.errors import OutputError, one_line


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write `data` beside `path`, then move it there in one step: readers see either the old file or the new one.

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
    """Delete temporary files that a killed `write_atomic` left; call it only if no other process writes `path`."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.{'?' * 8}"):
        leftover.unlink(missing_ok=True)


def check_new_file(path: Path) -> None:
    """Check that a file can be made or replaced at `path`; only a regular file is ever replaced.

    Raises:
        OutputError: the folder is missing or cannot be written to, or `path` is a folder, a device, a pipe or such.
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
        path.lstat()  # fails for names that no file can have
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or one_line(error)
        raise OutputError(f"{path}: cannot be written: {reason}") from error


def keep_strangers(path: Path, *beginnings: str) -> None:
    """Refuse to replace a file of another kind than the one to be written, as that is probably a mistake.

    Args:
        path: of the file.
        beginnings: texts with which files of that kind begin, after spaces and in upper or lower case.

    Raises:
        OutputError: `path` is a file of another kind, and not empty.
    """
    try:
        if not path.is_file() or path.stat().st_size == 0:
            return
        with path.open("rb") as file:
            start = file.read(256).lstrip().lower()
    except (OSError, ValueError):  # an unreadable file is not replaced silently: writing it fails later
        return
    if not start.startswith(tuple(beginning.lower().encode() for beginning in beginnings)):
        kinds = " or ".join(beginning.strip() for beginning in beginnings)
        raise OutputError(
            f"{path}: exists, is no output of this kind (it does not begin with {kinds}), and would be lost; name "
            "another file, or delete it first"
        )


def spare(target: Path, sources: Iterable[Path], does: str = "reads") -> None:
    """Refuse a target that is the same file as one of the sources, under any name.

    Args:
        target: file to be written.
        sources: files that the command reads, or also writes.
        does: for the message: ``reads``, or how else the command uses the sources.

    Raises:
        OutputError: the target is one of the sources.
    """
    for source in sources:
        try:
            same = target.samefile(source) if target.exists() and source.exists() else False
            same = same or target.resolve() == source.resolve()
        except (OSError, ValueError):  # a name that no file can have is no source
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
