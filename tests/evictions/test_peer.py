"""The same misses as libCacheSim, the simulator of the authors of S3-FIFO and SIEVE, on the same request streams."""

from __future__ import annotations

import numpy as np
import pytest

from hwsim.trace import Trace
from hwsim.util.files import data_folder
from hwsim.util.kernels import top_k
from tests.evictions.test_rules import run

peer = pytest.importorskip("libcachesim")

UNITS, REQUESTS = 400, 1500
PEERS = {
    "lru": peer.LRU, "fifo": peer.FIFO, "clock": peer.Clock, "s3fifo": peer.S3FIFO, "sieve": peer.Sieve,
    "arc": peer.ARC, "belady": peer.Belady,
}  # fmt: skip


def streams() -> dict[str, list[int]]:
    rng = np.random.default_rng(7)
    zipf = rng.zipf(1.1, 8 * REQUESTS) - 1
    with Trace(data_folder("traces") / "smollm2-135m-sample.npz") as trace:
        values = np.abs(trace.read(4, "input", 0, trace.header.tokens))
    # the recorded masks, one unit after the other; more than one unit of a mask would not fit into small caches
    recorded = np.concatenate([np.flatnonzero(top_k(row, 50)) for row in values])
    return {
        "zipf": zipf[zipf < UNITS][:REQUESTS].tolist(),
        "uniform": rng.integers(0, UNITS, REQUESTS).tolist(),
        "recorded": recorded[:REQUESTS].tolist(),
    }


STREAMS = streams()


def peer_misses(kind, stream, capacity, **parameters):
    """Objects of one byte in a cache of as many bytes; Belady is told the next use of each."""
    cache, request, misses, following = kind(capacity, **parameters), peer.Request(), 0, {}
    later = []
    for number in range(len(stream) - 1, -1, -1):
        later.append(following.get(stream[number], 2**62))
        following[stream[number]] = number
    for number, (unit, when) in enumerate(zip(stream, reversed(later), strict=True)):
        request.obj_id, request.obj_size, request.clock_time, request.next_access_vtime = unit + 1, 1, number, when
        misses += not cache.get(request)
    return misses


def misses(rule, stream, capacity, **parameters):
    units = max(stream) + 1
    return len(stream) - sum(run(rule, [{unit} for unit in stream], units, capacity, **parameters)[0])


@pytest.mark.parametrize("rule", PEERS)
@pytest.mark.parametrize("stream", STREAMS)
@pytest.mark.parametrize("capacity", [25, 120])
def test_the_same_misses(rule, stream, capacity):
    requests = STREAMS[stream]
    assert misses(rule, requests, capacity) == peer_misses(PEERS[rule], requests, capacity)


@pytest.mark.parametrize(
    ("rule", "ours", "theirs"),
    [
        ("clock", {"bits": 2}, {"n_bit_counter": 2}),
        ("s3fifo", {"small": 0.25, "ghost": 0.5, "threshold": 1},
         {"small_size_ratio": 0.25, "ghost_size_ratio": 0.5, "move_to_main_threshold": 1}),
    ],
)  # fmt: skip
def test_parameters_mean_the_same(rule, ours, theirs):
    requests = STREAMS["zipf"]
    assert misses(rule, requests, 60, **ours) == peer_misses(PEERS[rule], requests, 60, **theirs)
    assert misses(rule, requests, 60, **ours) != misses(rule, requests, 60)


def test_lfu_counts_also_what_is_not_in_the_cache():
    """The one difference in definition: libCacheSim's LFU forgets the count of who leaves."""
    stream = [0, 1, 1, 0, 2, 0, 2, 1, 2, 1, 2, 0, 2, 1]
    assert misses("lfu", stream, 2) != peer_misses(peer.LFU, stream, 2)
