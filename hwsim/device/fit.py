"""Fit a queue model of Flash to rates measured by request size and queue depth, from a table or fio's JSON."""

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

_LEAST_POINTS = 6  # one more than the parameters of the largest model
_MOST = 100_000
_COLUMNS = ("block size", "queue depth", "rate")
_FIO_SIZE = re.compile(r"\d{1,20} ?[kKmMgG]")  # 4k means 4 x 1024 bytes, as in fio's own options


class Point(NamedTuple):
    """One measured rate: bytes of a request, outstanding requests, bytes a second."""

    size: float
    depth: float
    rate: float


class Fit(NamedTuple):
    """A fitted model and its errors.

    Attributes:
        queue: the model.
        error: root mean square of the relative errors on the points that the model was fitted to.
        left_out: root mean square of the relative errors on each point with the model fitted to all other points.
        worst: the largest of these errors on left-out points, and its point.
    """

    queue: FlashQueue
    error: float
    left_out: float
    worst: tuple[float, Point]


def fit_queue(points: Sequence[Point]) -> Fit:
    """Fit the model of `FlashQueue` to rates, by least squares of the logarithms.

    Two models are fitted, as large requests may be split over channels: in one the time in parallel with other requests
    grows with a power below 1 of the size, in the other linearly. The model that better predicts left-out points is
    returned.

    Raises:
        ProfileError: there are too few points for a fit and its check.
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


def _solve(points: list[Point], free: bool, initial: FlashQueue | None = None) -> FlashQueue:
    try:
        from scipy.optimize import least_squares
    except ImportError as error:
        raise SettingError("fitting needs scipy: pip install 'hwsim[calibrate]'") from error

    def queue_of(values: np.ndarray) -> FlashQueue:
        latency, per_kib, command, bandwidth = (float(value) for value in np.exp(values[:4]))
        exponent = 1.0 / (1.0 + math.exp(-values[4])) if free else 1.0
        return FlashQueue.model_construct(
            latency=latency, per_kib=per_kib, command=command, bandwidth=bandwidth, exponent=exponent
        )

    def off(values: np.ndarray) -> np.ndarray:
        return np.log1p(_errors(queue_of(values), points))

    starts = [initial] if initial else [_guess(points, latency) for latency in (50e-6, 300e-6)]
    solutions = [least_squares(off, _values(start, free), bounds=_bounds(free)) for start in starts]
    return queue_of(min(solutions, key=lambda solution: solution.cost).x)


def _bounds(free: bool) -> tuple[list[float], list[float]]:
    low, high = [math.log(bound) for bound in (1e-9, 1e-12, 1e-9, 1e3)], [math.log(bound) for bound in (1, 1, 1, 1e15)]
    return ([*low, -4.0], [*high, 4.0]) if free else (low, high)


def _guess(points: list[Point], latency: float) -> FlashQueue:
    largest_rate = max(point.rate for point in points)
    return FlashQueue.model_construct(
        latency=latency, per_kib=3e-7, command=1e-5, bandwidth=largest_rate * 1.05, exponent=0.7
    )


def _values(queue: FlashQueue, free: bool) -> list[float]:
    values = [math.log(parameter) for parameter in (queue.latency, queue.per_kib, queue.command, queue.bandwidth)]
    share = min(max(queue.exponent, 0.02), 0.97)
    return values + ([math.log(share / (1 - share))] if free else [])


def _errors(queue: FlashQueue, points: Sequence[Point]) -> np.ndarray:
    """Relative errors of the model: predicted / measured - 1."""
    sizes, depths, rates = (np.array(column, float) for column in zip(*points, strict=True))
    return queue.bandwidth_at(sizes, depths) / rates - 1.0


def _rms(errors: np.ndarray) -> float:
    return float(np.sqrt(np.mean(errors**2)))


def read_points(path: Path) -> list[Point]:
    """The measured rates in a file: fio's JSON, or a table of block size, queue depth and rate with units or in MB/s.

    Raises:
        ProfileError: the file cannot be read, or a line has another form.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, ValueError) as error:
        raise ProfileError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or one_line(error)}") from error
    points = _fio(path, text) if text.lstrip()[:1] in ("{", "[") else _table(path, text)
    if len(points) > _MOST:
        raise ProfileError(f"{path}: has {len(points)} points; at most {_MOST}")
    return points


def _table(path: Path, text: str) -> list[Point]:
    """The points in lines of three cells, split by commas, semicolons, tabs or bars; skips a head without digits."""
    points: list[Point] = []
    for number, text_line in enumerate(text.splitlines(), 1):
        line = text_line.strip().strip("|")
        if not line or line.startswith("#") or set(line) <= set("-|: "):
            continue
        mark = next((separator for separator in ("|", ";", "\t", ",") if separator in line), ",")
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=mark))]
        if not points and not any(character.isdigit() for character in line):
            continue
        where = f"{path}: line {number}"
        if len(cells) != len(_COLUMNS):
            raise ProfileError(f"{where}: has {len(cells)} cells, needs {len(_COLUMNS)}: {', '.join(_COLUMNS)}")
        points.append(_point(where, *cells))
    if not points:
        raise ProfileError(f"{path}: holds no points; write lines such as 4KiB, 8, 315 MB/s")
    return points


def _point(where: str, size: str, depth: str, rate: str) -> Point:
    try:
        size_bytes = _fio_size(size) if _FIO_SIZE.fullmatch(size) else float(parse(size, "size"))
        speed = float(parse(rate if any(character.isalpha() for character in rate) else f"{rate} MB/s", "rate"))
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
    """The points of ``fio --output-format=json``: of each job its block size, iodepth x numjobs, and the rate."""
    try:
        data = json.loads(text[text.index("{") :])
    except (ValueError, RecursionError) as error:
        raise ProfileError(f"{path}: is no JSON of fio: {one_line(error)}") from error
    jobs = data.get("jobs") if isinstance(data, dict) else None
    if not isinstance(jobs, list) or not jobs:
        raise ProfileError(f"{path}: has no jobs; write it with fio --output-format=json")
    common = data.get("global options") or {}
    points = []
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
        points.append(Point(size, depth * workers, rate))
    if not points:
        raise ProfileError(f"{path}: none of its jobs reads")
    return points


def _fio_size(text: str) -> float:
    """Bytes of a block size as fio writes it: 4k is 4096 bytes."""
    factors = {"k": 2**10, "m": 2**20, "g": 2**30}
    text = text.strip().lower().removesuffix("ib").removesuffix("b")
    factor = factors.get(text[-1:], 1)
    return float(text[:-1] if factor > 1 else text) * factor
