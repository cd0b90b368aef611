"""A queue model of Flash fitted to measured rates: of request size and queue depth, from a table or from fio's JSON."""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.device.profile import FlashQueue
from hwsim.errors import ProfileError, SettingError, UnitError, one_line
from hwsim.util.units import parse, shorten

_LEAST_POINTS = 6  # one more than the largest model has parameters
_MOST = 100_000
_COLUMNS = ("block size", "queue depth", "rate")
_FIO_SIZE = re.compile(r"\d{1,20} ?[kKmMgG]")  # 4k, of 1024 bytes, as fio's own options have it


class Point(NamedTuple):
    """One measured rate: bytes of a request, requests outstanding, bytes a second."""

    size: float
    depth: float
    rate: float


class Fit(NamedTuple):
    """A fitted model, and how well it does.

    Attributes:
        queue: the model.
        error: root mean square of the relative errors on the points that it was fitted to.
        left_out: the same of each point when the model is fitted to all others.
        worst: the largest of the latter, and whose it is.
    """

    queue: FlashQueue
    error: float
    left_out: float
    worst: tuple[float, Point]


def fit_queue(points: Sequence[Point]) -> Fit:
    """Fit the model of `FlashQueue` to rates, by least squares of the logarithms.

    Large requests may be split over channels, so that the time beside the others grows with a power below 1; whether it
    does is decided by which of the two models predicts points better that it has not seen.

    Raises:
        ProfileError: too few points to fit and to judge by.
        SettingError: scipy is not installed.
    """
    sizes = {point.size for point in points}
    if len(points) < _LEAST_POINTS or len(sizes) < 2:
        raise ProfileError(
            f"{len(points)} points of {len(sizes)} block sizes are too few: a fit needs at least {_LEAST_POINTS} "
            "points of 2 block sizes"
        )
    fits = [_fit(list(points), free) for free in (False, True)]
    return min(fits, key=lambda fit: fit.left_out)


def _fit(points: list[Point], free: bool) -> Fit:
    queue = _solve(points, free)
    errors = _errors(queue, points)
    unseen = np.array(
        [_errors(_solve(points[:at] + points[at + 1 :], free, queue), [point])[0] for at, point in enumerate(points)]
    )
    worst = int(np.argmax(np.abs(unseen)))
    return Fit(queue, _rms(errors), _rms(unseen), (float(unseen[worst]), points[worst]))


def _solve(points: list[Point], free: bool, near: FlashQueue | None = None) -> FlashQueue:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise SettingError("fitting needs scipy: pip install 'hwsim[calibrate]'") from error

    def queue_of(values: np.ndarray) -> FlashQueue:
        latency, per_kib, command, bandwidth = (float(each) for each in np.exp(values[:4]))
        exponent = 1.0 / (1.0 + math.exp(-values[4])) if free else 1.0
        return FlashQueue.model_construct(
            latency=latency, per_kib=per_kib, command=command, bandwidth=bandwidth, exponent=exponent
        )

    def off(values: np.ndarray) -> np.ndarray:
        return np.log1p(_errors(queue_of(values), points))

    starts = [near] if near else [_guess(points, latency) for latency in (50e-6, 300e-6)]
    found = [least_squares(off, _values(start, free), bounds=_bounds(free)) for start in starts]
    return queue_of(min(found, key=lambda each: each.cost).x)


def _bounds(free: bool) -> tuple[list[float], list[float]]:
    low, high = [math.log(each) for each in (1e-9, 1e-12, 1e-9, 1e3)], [math.log(each) for each in (1, 1, 1, 1e15)]
    return ([*low, -4.0], [*high, 4.0]) if free else (low, high)


def _guess(points: list[Point], latency: float) -> FlashQueue:
    most = max(point.rate for point in points)
    return FlashQueue.model_construct(latency=latency, per_kib=3e-7, command=1e-5, bandwidth=most * 1.05, exponent=0.7)


def _values(queue: FlashQueue, free: bool) -> list[float]:
    values = [math.log(each) for each in (queue.latency, queue.per_kib, queue.command, queue.bandwidth)]
    share = min(max(queue.exponent, 0.02), 0.97)
    return values + ([math.log(share / (1 - share))] if free else [])


def _errors(queue: FlashQueue, points: Sequence[Point]) -> np.ndarray:
    """Relative errors of the model: predicted / measured - 1."""
    sizes, depths, rates = (np.array(each, float) for each in zip(*points, strict=True))
    return queue.bandwidth_at(sizes, depths) / rates - 1.0


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def read_points(path: Path) -> list[Point]:
    """Measured rates of a file: fio's JSON, or a table of block size, queue depth and rate with units or in MB/s.

    Raises:
        ProfileError: it cannot be read, or a line says something else.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ProfileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from error
    found = _fio(path, text) if text.lstrip()[:1] in ("{", "[") else _table(path, text)
    if len(found) > _MOST:
        raise ProfileError(f"{path}: has {len(found)} points; at most {_MOST}")
    return found


def _table(path: Path, text: str) -> list[Point]:
    """Lines of three cells, split by commas, semicolons, tabs or bars; a head without digits is passed over."""
    found: list[Point] = []
    for number, whole in enumerate(text.splitlines(), 1):
        line = whole.strip().strip("|")
        if not line or line.startswith("#") or set(line) <= set("-|: "):
            continue
        mark = next((each for each in ("|", ";", "\t", ",") if each in line), ",")
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=mark))]
        if not found and not any(c.isdigit() for c in line):
            continue
        where = f"{path}: line {number}"
        if len(cells) != len(_COLUMNS):
            raise ProfileError(f"{where}: has {len(cells)} cells, needs {len(_COLUMNS)}: {', '.join(_COLUMNS)}")
        found.append(_point(where, *cells))
    if not found:
        raise ProfileError(f"{path}: holds no points; write lines such as 4KiB, 8, 315 MB/s")
    return found


def _point(where: str, size: str, depth: str, rate: str) -> Point:
    try:
        size_bytes = _fio_size(size) if _FIO_SIZE.fullmatch(size) else float(parse(size, "size"))
        speed = float(parse(rate if any(c.isalpha() for c in rate) else f"{rate} MB/s", "rate"))
    except UnitError as error:
        raise ProfileError(f"{where}: {error}") from error
    except OverflowError as error:
        raise ProfileError(f"{where}: {shorten(size)}, {shorten(rate)}: is out of all proportion") from error
    try:
        outstanding = int(depth)
    except ValueError as error:
        raise ProfileError(f"{where}: queue depth {shorten(repr(depth))} is no whole number") from error
    if size_bytes <= 0 or speed <= 0 or not 1 <= outstanding <= 2**16:
        raise ProfileError(
            f"{where}: {size}, {depth}, {rate}: size and rate must be above 0, the depth from 1 to 65536"
        )
    return Point(size_bytes, outstanding, speed)


def _fio(path: Path, text: str) -> list[Point]:
    """Read jobs of ``fio --output-format=json``: block size, iodepth x numjobs, and the rate of all jobs."""
    try:
        data = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: is no JSON of fio: {one_line(error)}") from error
    jobs = data.get("jobs") if isinstance(data, dict) else None
    if not isinstance(jobs, list) or not jobs:
        raise ProfileError(f"{path}: has no jobs; write it with fio --output-format=json")
    common = data.get("global options") or {}
    found = []
    for job in jobs:
        name = shorten(str(job.get("jobname", "?") if isinstance(job, dict) else job))
        try:
            options: dict[str, Any] = {**common, **(job.get("job options") or {})}
            rate = float(job["read"].get("bw_bytes") or job["read"]["bw"] * 1024)
            if rate <= 0:
                continue  # a job that writes
            size = _fio_size(str(options.get("bs", options.get("blocksize", "4k"))).split(",")[0])
            depth = int(options.get("iodepth", 1))
            workers = 1 if options.get("group_reporting") is None else int(options.get("numjobs", 1))
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise ProfileError(f"{path}: job {name}: {type(error).__name__}: {one_line(error)}") from error
        found.append(Point(size, depth * workers, rate))
    if not found:
        raise ProfileError(f"{path}: none of its jobs reads")
    return found


def _fio_size(text: str) -> float:
    """Block sizes as fio writes them: 4k is 4096 bytes."""
    factors = {"k": 2**10, "m": 2**20, "g": 2**30}
    text = text.strip().lower().removesuffix("ib").removesuffix("b")
    factor = factors.get(text[-1:], 1)
    return float(text[:-1] if factor > 1 else text) * factor
