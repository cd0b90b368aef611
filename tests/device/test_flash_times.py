"""Flash by request: does the queue model behave as queues do, and do fits and tables follow what was measured?"""

import heapq
import json
import math
from importlib.util import find_spec

import numpy as np
import pytest
import simpy
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.device.fit import Point, fit_queue, read_points
from hwsim.device.flash import network
from hwsim.device.flash_times import FlashTimes, flash_seconds, holes
from hwsim.device.profile import Flash, FlashQueue, Thermal, load_profile
from hwsim.errors import ProfileError
from hwsim.timing.events import run_events
from tests.timing.cli import run_cli
from tests.timing.works import make

needs_scipy = pytest.mark.skipif(find_spec("scipy") is None, reason="scipy is an extra")

QUEUE = {"latency": "80 us", "per_kib": "0.2 us", "command": "10 us", "bandwidth": "2 GB/s"}


def queue(**more):
    return FlashQueue.model_validate(QUEUE | more)


def flash(depth=4, **more):
    return Flash.model_validate({"read_bandwidth": "2 GB/s", "queue_depth": depth, "queue": QUEUE | more})


SIZES = st.integers(512, 2**23)
DEPTHS = st.integers(1, 64)


@given(SIZES)
def test_at_a_depth_of_one_a_request_takes_latency_and_transfer(size):
    seconds = size / queue().bandwidth_at(size, 1)
    assert seconds == pytest.approx(80e-6 + 0.2e-6 * size / 1024 + 10e-6 + size / 2e9, rel=1e-12)
    split = queue(exponent=0.5)
    assert size / split.bandwidth_at(size, 1) == pytest.approx(
        80e-6 + 0.2e-6 * math.sqrt(size / 1024) + 10e-6 + size / 2e9, rel=1e-12
    )


@settings(max_examples=30)  # each solves a queue of 5000 requests
@given(SIZES)
def test_at_great_depth_the_server_alone_decides(size):
    assert queue().bandwidth_at(size, 5000) == pytest.approx(size / (10e-6 + size / 2e9), rel=1e-3)


@given(SIZES, DEPTHS)
def test_shapes_rise_where_physics_says_so(size, depth):
    model = queue(exponent=0.6)
    rate = model.bandwidth_at(size, depth)
    assert model.bandwidth_at(size, depth + 1) >= rate * (1 - 1e-12)  # more outstanding: no slower
    assert model.bandwidth_at(size + 512, depth) >= rate * (1 - 1e-12)  # larger requests: a higher rate
    assert (size + 512) / model.bandwidth_at(size + 512, depth) >= size / rate  # and more time each
    assert rate <= min(depth * model.bandwidth_at(size, 1), model.bandwidth) * (1 + 1e-12)


@pytest.mark.parametrize(("size", "depth"), [(4096, 1), (4096, 4), (4096, 32), (131072, 3), (2**20, 8)])
def test_the_queue_is_that_of_a_simulation_request_by_request(size, depth):
    """Every request on its own in SimPy: some time beside the others, then one server with exponentially spread times."""
    model, rng, reads = queue(), np.random.default_rng(0), 40_000
    env = simpy.Environment()
    server, done = simpy.Resource(env), [0]
    alone, served = (float(each) for each in model.times(size))
    spread = iter(rng.exponential(served, reads + 10 * depth).tolist())

    def worker():
        while done[0] < reads:
            yield env.timeout(alone)
            with server.request() as turn:
                yield turn
                yield env.timeout(next(spread))
            done[0] += 1

    for _ in range(depth):
        env.process(worker())
    env.run()
    assert done[0] * size / env.now == pytest.approx(model.bandwidth_at(size, depth), rel=0.02)


@given(st.integers(1, 200), SIZES, st.integers(1, 40))
def test_a_batch_is_full_rounds_and_a_last_one(count, size, depth):
    device = flash(depth)
    seconds = float(FlashTimes(device).seconds([(count, size)]))
    alone, served = device.queue.times(size)
    last = (count - 1) % depth + 1
    by_hand = (count - last) * size / device.queue.bandwidth_at(size, depth) + alone + last * served
    assert seconds == pytest.approx(by_hand, rel=1e-9)
    more = float(FlashTimes(device).seconds([(count + 1, size)]))
    assert more >= seconds * (1 - 1e-9)
    assert seconds >= count * size / device.queue.bandwidth * (1 - 1e-9)  # never above the bandwidth


def simulated(model, sizes, depth, rng):
    """When the last of a batch's requests is done: each on its own, exponential service in the order of coming."""
    alone, served = model.times(np.array(sizes, float))
    coming = [(alone[number], number) for number in range(min(depth, len(sizes)))]
    heapq.heapify(coming)
    free, following = 0.0, len(coming)
    while coming:
        at, number = heapq.heappop(coming)
        free = max(free, at) + rng.exponential(served[number])
        if following < len(sizes):
            heapq.heappush(coming, (free + alone[following], following))
            following += 1
    return free


@pytest.mark.parametrize("count", [1, 3, 6, 8, 9, 20, 70])
@pytest.mark.parametrize("size", [4096, 65536, 2**20])
@pytest.mark.parametrize("name", ["m5-pro", "made up"])
def test_a_batch_takes_what_its_requests_take_one_by_one(name, size, count):
    device = load_profile(name).flash if name == "m5-pro" else flash(8)
    rng = np.random.default_rng(0)
    each = np.mean(
        [simulated(device.queue, [size] * count, device.queue_depth, rng) for _ in range(max(400, 6000 // count))]
    )
    assert float(FlashTimes(device).seconds([(count, size)])) == pytest.approx(each, rel=0.06)


@pytest.mark.parametrize("count", [6, 20, 100])
def test_the_mean_size_stands_for_reads_of_many_sizes(count):
    device, rng, errors = flash(8), np.random.default_rng(1), []
    for _ in range(60):
        sizes = rng.choice([4096, 8192, 16384, 65536, 262144], count, p=[0.5, 0.2, 0.15, 0.1, 0.05])
        each = np.mean([simulated(device.queue, sizes, 8, rng) for _ in range(20)])
        errors.append(float(FlashTimes(device).seconds([(count, sizes.mean())])) / each - 1)
    assert abs(np.mean(errors)) < 0.05
    assert np.std(errors) < 0.10


@pytest.mark.parametrize("name", ["oneplus15r", "desktop-nvme", "oneplus-nord"])
def test_a_table_is_split_into_a_network_that_has_its_rates(name):
    """At the smallest and at the greatest depth exactly, where physics allows; between them near."""
    table = load_profile(name).flash.table
    for size, row in table.read.items():
        alone, served = (float(each) for each in table.times(size))
        assert alone >= 0
        assert served >= 0
        assert size / (alone + served) == pytest.approx(row[0] * table.unit, rel=1e-6)
        found = float(network(np.array(alone), np.array(served), table.queue_depth[-1])) * size
        assert (
            found == pytest.approx(row[-1] * table.unit, rel=1e-6)
            or found > row[-1] * table.unit * 0.999
            or served < 1e-9
        )


def test_a_table_of_one_depth_serves_fewer_in_the_time_of_all():
    """Of 32 outstanding it is known how long they take together; fewer take as long."""
    table = load_profile("m1-max").flash.table
    alone, served = (float(each) for each in table.times(32768))
    assert served == pytest.approx(0, abs=1e-12)
    assert alone == pytest.approx(32 * 32768 / 2250e6, rel=1e-9)


def test_many_batches_at_once_are_what_one_is():
    device, rng = load_profile("oneplus15r").flash, np.random.default_rng(3)
    counts, sizes = rng.integers(0, 50, (20, 3)), rng.integers(512, 2**21, (20, 3))
    found = FlashTimes(device).seconds([(counts, sizes)])
    for at in np.ndindex(counts.shape):
        one = flash_seconds(device.model_copy(update={"page_size": None}))(int(counts[at]), (int(sizes[at]),))
        assert found[at] == pytest.approx(one, rel=1e-12)


# ---------------------------------------------------------------------- fits


def measured(name):
    """All points of a profile's table."""
    table = load_profile(name).flash.table
    return [
        Point(size, depth, rate * table.unit)
        for size, row in table.read.items()
        for depth, rate in zip(table.queue_depth, row, strict=True)
    ]


# of slotstream, MEASUREMENTS.md: the points that the profile m5-pro was fitted to
M5_PRO = [
    Point(4096, 1, 76.4e6), Point(4096, 32, 1.11e9), Point(16384, 1, 272e6), Point(16384, 8, 2.04e9),
    Point(16384, 32, 4.54e9), *(Point(2.76e6, d, r * 1e9) for d, r in ((1, 9.46), (4, 16.95), (8, 17.25), (16, 17.18), (32, 17.3))),
]  # fmt: skip


@needs_scipy
@pytest.mark.parametrize(
    ("points", "rms"),
    [
        (measured("oneplus15r"), 0.09),
        (measured("oneplus-nord"), 0.15),
        (measured("desktop-nvme"), 0.11),
        (M5_PRO, 0.12),
    ],
    ids=["oneplus15r", "oneplus-nord", "desktop-nvme", "m5-pro"],
)
def test_fits_predict_points_that_were_left_out(points, rms):
    fit = fit_queue(points)
    assert fit.error <= fit.left_out <= rms <= 0.15


@needs_scipy
def test_the_profile_that_carries_a_fit_carries_this_one():
    fit, shipped = fit_queue(M5_PRO).queue, load_profile("m5-pro").flash.queue
    for field in ("latency", "per_kib", "command", "bandwidth", "exponent"):
        assert getattr(shipped, field) == pytest.approx(getattr(fit, field), rel=1e-3), field


@needs_scipy
def test_a_fit_finds_the_model_that_made_the_points():
    model = queue(exponent=0.5)
    points = [Point(s, d, model.bandwidth_at(s, d)) for s in (4096, 32768, 2**20) for d in (1, 4, 16)]
    fit = fit_queue(points)
    assert fit.error < 1e-4
    for field in ("latency", "per_kib", "command", "bandwidth", "exponent"):
        assert getattr(fit.queue, field) == pytest.approx(getattr(model, field), rel=0.01), field


@pytest.mark.parametrize("name", ["oneplus15r", "desktop-nvme"])
def test_between_the_points_of_a_table_lies_what_was_measured(name):
    """Each inner row left out in turn, and interpolated from its neighbours."""
    table, errors = load_profile(name).flash.table, []
    for size in list(table.read)[1:-1]:
        others = table.model_copy(update={"read": {key: row for key, row in table.read.items() if key != size}})
        for depth in table.queue_depth:
            errors.append(others.bandwidth(size, depth) / table.bandwidth(size, depth) - 1)
    assert np.sqrt(np.mean(np.square(errors))) <= 0.10


# ---------------------------------------------------------------------- calibrate-device

LINES = ["size, depth, rate", "4KiB, 1, 43.4", "4KiB, 8, 314.8 MB/s", "64KiB, 1, 444", "64KiB, 8, 1962", "1MiB, 1, 1549",
         "1 MiB, 8, 2.806 GB/s"]  # fmt: skip


def test_a_table_is_read_with_its_units(tmp_path):
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(LINES))
    points = read_points(path)
    assert points[1] == Point(4096, 8, 314.8e6)
    assert points[5] == Point(2**20, 8, 2.806e9)
    path.write_text(
        "| size | depth | rate |\n|---|---|---|\n"
        + "\n".join("|" + "|".join(line.split(",")) + "|" for line in LINES[1:])
    )
    assert read_points(path) == points


FIO = {
    "fio version": "fio-3.36",
    "global options": {"ioengine": "libaio", "direct": "1"},
    "jobs": [
        {"jobname": f"{bs}-{depth}", "job options": {"bs": bs, "iodepth": str(depth)}, "read": {"bw_bytes": rate}}
        for bs, depth, rate in [
            ("4k", 1, 43_400_000), ("4k", 8, 314_800_000), ("64k", 1, 444_000_000), ("64k", 8, 1_962_000_000),
            ("1m", 1, 1_549_000_000), ("1m", 8, 2_806_000_000),
        ]
    ],
}  # fmt: skip


def test_json_of_fio_is_read(tmp_path):
    path = tmp_path / "fio.json"
    path.write_text(json.dumps(FIO))
    points = read_points(path)
    assert points[0] == Point(4096, 1, 43.4e6)
    assert points[5] == Point(2**20, 8, 2.806e9)


@needs_scipy
def test_a_profile_is_written_that_a_replay_takes(tmp_path):
    (tmp_path / "fio.json").write_text(json.dumps(FIO))
    out = tmp_path / "mine.yaml"
    found = run_cli(
        "calibrate-device", str(tmp_path / "fio.json"), "--like", "pixel8", "--name", "Mine", "-o", str(out)
    )
    assert "on points left out" in found.stdout
    profile = load_profile(out)
    assert (profile.name, profile.flash.queue_depth, profile.dram.budget) == ("Mine", 8, 4 * 10**9)
    assert profile.flash.queue.confidence == "derived"
    assert "Taken from pixel8" in profile.dram.note
    for point in read_points(tmp_path / "fio.json"):
        assert profile.flash.bandwidth(point.size, point.depth) == pytest.approx(point.rate, rel=0.2)
    replayed = run_cli("replay", "sample", "--hw", str(out), "--dram", "60%", "--policy", "dip")
    assert "Mine" in replayed.stdout
    again = run_cli("calibrate-device", str(tmp_path / "fio.json"), "--like", "pixel8", "-o", str(out), code=1)
    assert "--overwrite" in again.stderr
    yaml.safe_load(out.read_text())


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds no points"),
        ("4KiB, 1", "line 1: has 2 cells"),
        ("4KiB, 1, 43\n4KiB, x, 43", "line 2: queue depth 'x'"),
        ("4KiB, 1, 43\n4, 1, 43", "line 2: '4' has no unit"),
        ("4KiB, 0, 43", "the depth from 1"),
        ("4KiB, 1, 43 MB", "line 1"),
        ("4KiB, 1, 43\n4KiB, 2, 86", "too few"),
        ("{", "is no JSON of fio"),
        ('{"jobs": []}', "has no jobs"),
        ('{"jobs": [{"jobname": "a"}]}', "job a: KeyError"),
        ('{"jobs": [7]}', "job 7"),
        ('{"jobs": [{"jobname": "w", "read": {"bw_bytes": 0, "bw": 0}}]}', "none of its jobs reads"),
    ],
)
def test_bad_measurements_are_one_line(tmp_path, text, says):
    path = tmp_path / "bad.txt"
    path.write_text(text)
    found = run_cli("calibrate-device", str(path), "--like", "pixel8", code=1)
    assert says in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_sizes_of_a_table_may_be_written_as_fio_does(tmp_path):
    (tmp_path / "fio.csv").write_text("4k, 8, 315 MB/s\n128 K, 8, 1 GB/s\n1M, 1, 2 GB/s\n4 kB, 1, 30\n")
    assert [point.size for point in read_points(tmp_path / "fio.csv")] == [4096, 131_072, 2**20, 4000]


def test_missing_files_are_one_line(tmp_path):
    with pytest.raises(ProfileError, match="cannot be read"):
        read_points(tmp_path / "none.csv")


# ---------------------------------------------------------------------- holes


def test_no_hole_is_tried_that_takes_longer_than_another_read_at_the_best_rate():
    found = holes(load_profile("oneplus15r").flash)
    assert found[:-1] == [0, 4096, 8192, 16384, 32768]
    assert found[-1] == pytest.approx(4096 / 314.8e6 * 2806e6, rel=1e-3)  # a small read takes as long as 36 kB
    assert holes(load_profile("pixel8").flash) == [0]  # flat and without latency: a hole is only a loss
    timed = Flash.model_validate({"read_bandwidth": "1 GB/s", "latency": "100 us", "queue_depth": 10})
    assert holes(timed) == [0, 4096, 8192, 10_000]


@settings(max_examples=50)
@given(st.floats(0.1, 1), st.floats(0, 1))
def test_hot_flash_is_slower_by_its_factor(factor, share):
    work = make(tokens=4, flash=1.0)
    hot = Thermal.model_validate({"after": f"{4 * share:.6f} s", "factor": factor})
    cold = run_events(work, overlap="none").times.total
    found = run_events(work, overlap="none", thermal=hot).times.total
    assert cold * (1 - 1e-9) <= found <= cold / factor * (1 + 1e-9)
