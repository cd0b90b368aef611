"""The timeline: is it the format that Perfetto reads, and does it say what the result says?"""

import json
from collections import defaultdict

import pytest

from hwsim.errors import SettingError
from hwsim.report.timeline import Timeline, read_range
from tests.timing.cli import run_cli

SETTINGS = {
    "plain": ("--overlap", "none"),
    "pipeline": ("--overlap", "pipeline", "--bundle", "--packed", "--merge", "64KiB"),
    "prefetch": ("--overlap", "prefetch", "--prefetch", "oracle"),
}


@pytest.fixture(params=SETTINGS, scope="module")
def drawn(request, tmp_path_factory):
    """A timeline of all tokens, and the result of the same run."""
    folder = tmp_path_factory.mktemp("timeline")
    run_cli(
        "replay", "sample", "--hw", "oneplus15r", "--dram", "60%", "--policy", "dip-ca", *SETTINGS[request.param],
        "--timeline", folder / "t.json", "--timeline-tokens", "0:", "--json", folder / "r.json",
    )  # fmt: skip
    return json.loads((folder / "t.json").read_text()), json.loads((folder / "r.json").read_text())


def slices(timeline, track=None):
    return [e for e in timeline["traceEvents"] if e["ph"] == "X" and track in (None, e["tid"])]


def test_every_event_has_what_the_format_asks_for(drawn):
    timeline, _ = drawn
    assert set(timeline) == {"traceEvents", "displayTimeUnit", "otherData"}
    opened = defaultdict(int)
    for event in timeline["traceEvents"]:
        assert {"name", "ph", "pid", "tid", "ts"} <= set(event)
        assert event["ph"] in "XCMbe"
        assert event["ts"] >= 0
        if event["ph"] == "X":
            assert event["dur"] >= 0
        if event["ph"] == "C":
            assert all(isinstance(value, int | float) and value >= 0 for value in event["args"].values())
        if event["ph"] in "be":
            opened[event["cat"], event["id"]] += 1 if event["ph"] == "b" else -1
            assert opened[event["cat"], event["id"]] in (0, 1)
    assert not any(opened.values())
    times = [event["ts"] for event in timeline["traceEvents"] if event["ph"] != "M"]
    assert times == sorted(times)
    named = {e["args"]["name"] for e in timeline["traceEvents"] if e["name"] == "thread_name"}
    assert named == {"decoder", "Flash", "DRAM", "compute"}


def test_slices_of_a_track_lie_one_after_the_other_or_inside(drawn):
    timeline, _ = drawn
    for track in (1, 2, 3, 4):
        ends = []
        for event in slices(timeline, track):
            start, end = event["ts"], event["ts"] + event["dur"]
            while ends and ends[-1] <= start + 1e-3:
                ends.pop()
            assert not ends or end <= ends[-1] + 1e-3, event  # nested, as the decoder's layers in its tokens
            assert track == 1 or not ends  # a device does one thing at a time
            ends.append(end)


def test_its_sums_are_those_of_the_result(drawn):
    timeline, result = drawn
    tokens = [e for e in slices(timeline, 1) if e["name"].startswith("token ")]
    assert len(tokens) == result["tokens"]
    assert sum(e["dur"] for e in tokens) == pytest.approx(result["time_s"]["total"] * 1e6, rel=1e-9)
    flash = slices(timeline, 2)
    if result["prefetch"] is None:
        assert sum(e["dur"] for e in flash) == pytest.approx(result["busy_s"]["flash"] * 1e6, rel=1e-9)
        named = [e for e in flash if "flash_bytes" in e["args"]]
        assert sum(e["args"]["flash_bytes"] for e in named) == result["flash_bytes"]
    rates = [e["args"]["share"] for e in timeline["traceEvents"] if e["name"] == "hit rate"]
    assert len(rates) == result["tokens"]
    cache = [e["args"]["bytes"] for e in timeline["traceEvents"] if e["name"] == "cache"]
    assert max(cache) <= result["cache_bytes"]
    depths = [e["args"]["reads"] for e in timeline["traceEvents"] if e["name"] == "Flash queue depth"]
    assert max(depths) <= 8  # the profile's


def test_a_range_of_tokens_is_cut_out(tmp_path):
    run_cli("replay", "sample", "--hw", "pixel8", "--dram", "60%", "--policy", "dip", "--timeline", tmp_path / "t.json",
            "--timeline-tokens", "5:8")  # fmt: skip
    timeline = json.loads((tmp_path / "t.json").read_text())
    assert {e["args"]["token"] for e in slices(timeline)} == {5, 6, 7}
    assert {e["args"]["layer"] for e in slices(timeline, 1) if "layer" in e["args"]} == {*range(30), "LM head"}


def test_the_same_run_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        run_cli(
            "replay", "sample", "--hw", "oneplus12", "--dram", "60%", "--policy", "dip", "--timeline", tmp_path / name
        )
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_occupancy_is_that_of_the_caches(tmp_path, trace):
    """Against what caches really hold at the end of the last sequence."""
    from hwsim.simulation.plugins import EVICTIONS, POLICIES
    from hwsim.simulation.settings import Settings
    from tests.conftest import flat_profile
    from tests.runs import Told, replay

    timeline, held = Timeline((0, 2**62)), {}
    replay(
        trace, flat_profile(), POLICIES.make("dip")[1], EVICTIONS.make("lru")[1], Settings(dram="70%"),
        observers=[
            timeline,
            Told(contents=lambda layer, group, cached: held.__setitem__((layer, group), int(cached.sum()))),
        ],
    )  # fmt: skip
    last, first = timeline._occupied[-1], timeline._occupied[34]
    for (layer, group), units in held.items():
        assert last[layer, timeline._groups[layer].index(group)] == units
    assert (first < last).any()  # the second of two sequences begins with empty caches


@pytest.mark.parametrize(("text", "found"), [("0:32", (0, 32)), ("5:", (5, 2**62)), (":3", (0, 3))])
def test_ranges(text, found):
    assert read_range(text) == found


@pytest.mark.parametrize("text", ["", "3", "3:3", "4:2", "-1:3", "a:b", ":", "1:2:3"])
def test_bad_ranges_are_refused(text):
    if text == ":":
        assert read_range(text) == (0, 2**62)
        return
    with pytest.raises(SettingError, match="write FIRST:END"):
        read_range(text)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--policy", "dip,dense"), "shows one run"),
        (("--policy", "dip", "--hw", "pixel8,oneplus12"), "shows one run"),
        (("--policy", "dip", "--timing", "closed-form"), "knows no moments"),
        (("--policy", "dip", "--timeline-tokens", "100:200"), "there are 78 decoded tokens"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(tmp_path, options, says):
    hw = () if "--hw" in options else ("--hw", "pixel8")
    done = run_cli("replay", "sample", *hw, *options, "--timeline", tmp_path / "t.json", code=1)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "t.json").exists()


def test_tokens_without_a_timeline_are_refused():
    words = ("replay", "sample", "--hw", "pixel8", "--policy", "dip", "--timeline-tokens", "3:5")
    done = run_cli(*words, code=1)
    assert done.stderr == "hwsim: --timeline-tokens: says which tokens --timeline shows; give that, too\n"
