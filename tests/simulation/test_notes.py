"""The notes below a result: each says what it must, and only where it is true."""

from __future__ import annotations

from pathlib import Path

import pytest

from hwsim.device.profile import Profile
from hwsim.simulation.metrics import Result
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.trace import Trace
from tests.conftest import flat_profile
from tests.runs import replay

TABLE = {
    "queue_depth": 8,
    "table": {"unit": "MB/s", "queue_depth": [1, 8], "read": {"4 KiB": [40, 250], "1 MiB": [900, 1000]}},
}
SLOW = Profile.model_validate(
    {"name": "slow", "dram": {"budget": "1 GB", "bandwidth": "50 GB/s"}, "flash": {"read_bandwidth": "1 GB/s", **TABLE}}
)


def run(path: Path, policy: str, profile: Profile, timing: str = "events", **settings: object) -> Result:
    with Trace(path) as trace:
        made, rule = POLICIES.make(policy)[1], EVICTIONS.make("lfu")[1]
        return replay(trace, profile, made, rule, Settings(timing=timing, **settings), policy_name=policy)  # type: ignore[arg-type]


def has(result: Result, words: str) -> bool:
    return any(words in note for note in result.notes)


@pytest.mark.parametrize(
    ("rates", "told"),
    [
        ([900, 1000], None),
        (
            [900, 1600],
            "warning: Flash reads up to 1.60 GB/s by its table or queue, its read_bandwidth is 1.00 GB/s; check the profile.",
        ),
        ([900, 60000], "warning: Flash reads up to 60.0 GB/s, faster than DRAM's 50.0 GB/s; check the profile."),
    ],
)
def test_rates_that_no_device_has_are_told(rates: list[int], told: str | None, small_trace: Path) -> None:
    plain = SLOW.model_dump(mode="json", exclude_none=True)
    plain["flash"] = {"read_bandwidth": "1 GB/s", "queue_depth": 8}
    plain["flash"]["table"] = {"unit": "MB/s", "queue_depth": [1, 8], "read": {"4 KiB": [40, 250], "1 MiB": rates}}
    plain["dram"] = {"budget": "1 GB", "bandwidth": "50 GB/s"}
    notes = run(small_trace, "dip", Profile.model_validate(plain), dram="60%").notes
    assert [note for note in notes if "check the profile" in note] == ([told] if told else [])


def test_small_reads_are_named_with_the_rate_they_get(small_trace: Path) -> None:
    result = run(small_trace, "dip", SLOW, dram="60%")
    (note,) = [note for note in result.notes if "small pieces" in note]
    size = min(result.groups[0].unit_bytes // 2, 4096)  # the input's unit is a column of gate and one of up
    rate = 250 * size / 4096  # as slow as 4 KiB at the full queue
    assert f"input {size} B at {rate:.3g} MB/s" in note
    assert "far below the 1.00 GB/s of large reads" in note


def test_whole_pages_are_named_where_they_are_much(small_trace: Path) -> None:
    """A slice of input has 60 B, one of down 24 B; pages of 32 B make 64 B and 32 B of them, pages of 48 B 96 and 48."""

    def found(page: str) -> list[str]:
        flash = {"read_bandwidth": "1 GB/s"} | ({"page_size": page} if page else {})
        dram = {"budget": "1 GB", "bandwidth": "50 GB/s"}
        device = Profile.model_validate({"name": "paged", "dram": dram, "flash": flash})
        return [note for note in run(small_trace, "dip", device, dram="60%").notes if "pages" in note]

    assert found("") == found("32 B") == []
    whole = "Flash reads whole pages of 48 B: for input 1.6 times, for down 2 times the bytes that are needed."
    assert found("48 B") == [f"dip: {whole}"]
    (both,) = found("4 KiB")
    assert "small pieces" in both
    assert both.endswith("of 4096 B: for input 68.3 times, for down 171 times the bytes that are needed.")


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_small_reads_matter_only_where_they_cost(timing: str, small_trace: Path) -> None:
    assert not has(run(small_trace, "dip", flat_profile(), timing, dram="60%"), "small pieces")
    assert not has(run(small_trace, "dense", SLOW, timing, dram="60%"), "small pieces")
    assert not has(run(small_trace, "dip", SLOW, timing, dram="1 GB"), "small pieces")
    if timing == "closed-form":
        assert not has(run(small_trace, "dip", SLOW, timing, dram="60%"), "small pieces")


def test_everything_fits_is_said(small_trace: Path) -> None:
    for policy in ("dense", "dip"):
        assert has(run(small_trace, policy, flat_profile(), dram="1 GB"), "Everything fits")
        assert not has(run(small_trace, policy, flat_profile(), dram="60%"), "Everything fits")


def test_synthetic_is_called_synthetic(small_trace: Path) -> None:
    assert has(run(small_trace, "dip", flat_profile(), dram="60%"), "The trace is synthetic")


def test_energy_says_what_it_leaves_out(small_trace: Path) -> None:
    reads = {"dram_read": "56 pJ/B", "flash_read": "0.42 nJ/B"}
    partial = run(small_trace, "dip", flat_profile(energy=reads), dram="60%")
    assert has(partial, "Energy is that of reading Flash and DRAM; the profile knows no arithmetic and no base power.")
    whole = flat_profile(energy=reads | {"compute": "0.5 pJ/OP", "base_power": "1 W"})
    assert not has(run(small_trace, "dip", whole, dram="60%"), "Energy is")
    assert not has(run(small_trace, "dip", flat_profile(), dram="60%"), "Energy is")
