"""Hand bad files to their readers and keep watch."""

from __future__ import annotations

import random
import resource
import signal
import tempfile
import time
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from hwsim.errors import HwsimError
from tests.fuzz.kinds import Kind
from tests.fuzz.mutate import mutate

HANG_S = 10
GROWTH = 2 << 30  # bytes of address space beyond what is there


class Fault(NamedTuple):
    """A file that did harm."""

    kind: str
    why: str
    content: bytes


class Told(NamedTuple):
    """What came of a kind."""

    files: int
    refused: int
    read: int
    slowest_s: float
    faults: list[Fault]


class _Hang(BaseException):
    """A reader took too long."""


def _ring(number: int, frame: object) -> None:
    raise _Hang


def drive(kind: Kind, files: int, seed: int) -> Told:
    """Read so many bad files of a kind."""
    rng = random.Random(f"{kind.name} {seed}")
    counts: Counter[str] = Counter()
    faults: list[Fault] = []
    slowest = 0.0
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGALRM, _ring)
    resource.setrlimit(resource.RLIMIT_AS, (now + GROWTH, hard))
    try:
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("error")
            path = Path(folder) / f"file{kind.ending}"
            for _ in range(files):
                content = mutate(rng.choice(kind.seeds), kind.text, rng)
                path.write_bytes(content)
                start = time.monotonic()
                signal.setitimer(signal.ITIMER_REAL, HANG_S)
                try:
                    kind.read(path)
                    counts["read"] += 1
                except HwsimError as error:
                    counts["refused"] += 1
                    if len(str(error).splitlines()) != 1 or not str(error).strip():
                        faults.append(Fault(kind.name, f"not one line: {error!s:.200}", content))
                except _Hang:
                    faults.append(Fault(kind.name, f"took more than {HANG_S} s", content))
                except BaseException as error:
                    faults.append(Fault(kind.name, f"{type(error).__name__}: {error!s:.200}", content))
                finally:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                slowest = max(slowest, time.monotonic() - start)
                for left in Path(folder).iterdir():  # a reader leaves nothing beside
                    if left != path:
                        if not left.name.startswith(path.name):
                            faults.append(Fault(kind.name, f"left {left.name}", content))
                        left.unlink()
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGALRM, before)
    return Told(files, counts["refused"], counts["read"], slowest, faults)
