"""Exact totals on the recorded sample. A change here is a change of a promise: explain it in docs/log.md.

The first row can be checked with pencil and paper, see `test_dense_by_hand`; tests/system/test_invariants.py holds hits and
bytes of all policies against a plain twin.
"""

from __future__ import annotations

from typing import Any

import pytest

from hwsim.device.profile import load_profile
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from hwsim.util.files import data_folder
from tests.runs import replay

SAMPLE = data_folder("traces") / "smollm2-135m-sample.npz"
HASH = "604faf2d90a524470cf1437148c620dae698380d136ee1e1e1d2d62db957c68b"

CA = {"warm_up": True, "fixed_top_n": 20, "gamma": 0.5}
# policy, parameters, eviction, --dram: unit requests, unit hits, bytes from Flash, bytes from DRAM, seconds
TOTALS: list[tuple[str, dict[str, Any], str, str, tuple[int, int, int, int], float]] = [
    ("dense", {}, "lfu", "50%", (0, 0, 2622357504, 2657850624), 2.7277861490816306),
    ("magnitude", {"density": 0.75}, "lfu", "90%", (898560, 568979, 94919328, 4408932960), 0.18296842901785693),
    ("dip", {}, "lfu", "50%", (2033460, 373264, 1285773408, 2438353440), 1.359637772257651),
    ("dip", {"density": 0.3}, "lfu", "50%", (1074060, 265876, 736025472, 2367196416), 0.7972807050000043),
    ("dip", {}, "none", "70%", (2033460, 0, 1549342080, 2174784768), 1.6234375711224276),
    ("dip", {}, "lru", "70%", (2033460, 1126186, 730127328, 2993999520), 0.8035044388392869),
    ("dip", {}, "lfu", "70%", (2033460, 1153065, 722386176, 3001740672), 0.7957564985204093),
    ("dip", {}, "fifo", "70%", (2033460, 1110913, 734525952, 2989600896), 0.8079069200510209),
    ("dip", {}, "belady", "70%", (2033460, 1309971, 677197248, 3046929600), 0.7505279437499995),
    ("dip-ca", {}, "lfu", "70%", (2033460, 1676940, 366826944, 3357299904), 0.4398854719132679),
    ("dip-ca", CA, "lru", "70%", (2033460, 1382071, 562589088, 3161537760), 0.6358192823341864),
]


def test_the_sample_is_the_one_that_was_recorded() -> None:
    with Trace(SAMPLE) as trace:
        assert trace.hash == HASH
        assert len(list(trace.verify())) == 63  # 30 layers of input and glu, tokens, nll, header
        assert trace.header.origin == "recorded"
        assert trace.header.provenance["text"]["name"] == "persuasion.txt"
        assert trace.perplexity() == pytest.approx(115.3, abs=0.05)
    assert SAMPLE.stat().st_size <= 10_000_000


@pytest.mark.parametrize(("policy", "parameters", "eviction", "dram", "counts", "seconds"), TOTALS)
def test_totals(
    policy: str, parameters: dict[str, Any], eviction: str, dram: str, counts: tuple[int, ...], seconds: float
) -> None:
    _, made = POLICIES.make(policy, parameters)
    _, rule = EVICTIONS.make(eviction)
    with Trace(SAMPLE) as trace:
        result = replay(trace, load_profile("pixel8"), made, rule, Settings(dram=dram))
    assert (result.unit_requests, result.unit_hits, result.flash_bytes, result.dram_bytes) == counts
    assert result.time_s.total == pytest.approx(seconds, rel=1e-12)


def test_dense_by_hand() -> None:
    """SmolLM2 at 4 bits, half of its weights in DRAM: the rest is streamed at each of the 78 tokens."""
    weights = 30 * (2 * 576 * 576 + 2 * 192 * 576 + 3 * 576 * 1536) // 2 + 49152 * 576 // 2
    streamed = weights - weights // 2
    kv_entry = 30 * 2 * 3 * 64  # one byte each
    from_dram = 78 * (weights // 2) + kv_entry * 78 * 79 // 2
    assert TOTALS[0][4] == (0, 0, 78 * streamed, from_dram)
    assert TOTALS[0][5] == pytest.approx(78 * streamed / 980e6 + from_dram / 51.2e9, rel=1e-12)
