"""Which reads misses become: held against a plain twin, unit by unit and page by page."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.device.flash_times import FlashTimes, holes
from hwsim.device.profile import load_profile
from hwsim.errors import SettingError
from hwsim.memory.neuron_order import Layout
from hwsim.memory.planning import Units, plan_group
from hwsim.model.shape import Bits, ModelShape
from hwsim.policy import Group
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.timing.reads import Reader, ReadSetup
from tests.conftest import flat_profile
from tests.runs import replay
from tests.timing.cli import run_cli

MODEL = ModelShape(
    name="m", num_hidden_layers=2, hidden_size=40, intermediate_size=61, num_attention_heads=4, num_key_value_heads=2,
    head_dim=10, vocab_size=50,
)  # fmt: skip


def plan_of(block=1, slices=("down.column",), layout=None, layer=0):
    axis = "neuron"
    return plan_group(Group("g", axis, list(slices)), MODEL, Units(Bits(mlp=8), block, layout), layer)


def plain(misses, sizes, last, page, packed, most, gap):
    """Reads one by one: chains of misses, cut into pieces, each read from its first to its last."""
    units, reads, size = len(misses), 0, 0
    chains, chain = [], []
    for unit in range(units):
        if misses[unit]:
            if chain and unit - chain[-1] - 1 > gap:
                chains.append(chain)
                chain = []
            chain.append(unit)
    chains += [chain] if chain else []
    for chain in chains:
        pieces = {}
        for unit in chain:
            pieces.setdefault((unit - chain[0]) // most, []).append(unit)
        for piece in pieces.values():
            for whole, short in zip(sizes, last, strict=True):
                stride = whole if packed else -(-whole // page) * page
                first, end = piece[0] * stride, piece[-1] * stride + (short if piece[-1] == units - 1 else whole)
                pages = {byte // page for byte in range(first, end)}
                assert len(pages) == max(pages) - min(pages) + 1
                reads, size = reads + 1, size + len(pages) * page
    return reads, size


@settings(max_examples=150)
@given(st.data())
def test_reads_are_those_of_a_plain_loop(data):
    block = data.draw(st.sampled_from([1, 3, 8]))
    slices = data.draw(st.sampled_from([("down.column",), ("gate.row", "up.row", "down.column")]))
    plan = plan_of(block, slices)
    page = data.draw(st.sampled_from([1, 16, 64, 100]))
    setup = ReadSetup(
        bundle=data.draw(st.booleans()), packed=data.draw(st.booleans()),
        merge=data.draw(st.sampled_from([None, 1, 200, 1000, 10**6])),
    )  # fmt: skip
    gap = data.draw(st.sampled_from([0, 50, 300])) if setup.merge else 0
    share = data.draw(st.sampled_from([0.0, 0.1, 0.5, 1.0]))
    misses = np.random.default_rng(data.draw(st.integers(0, 2**32))).random((3, plan.units)) < share
    reads, size = Reader(plan, setup, page, [gap]).count(misses)
    sizes, last = setup.slices(plan)
    largest = max(each if setup.packed else -(-each // page) * page for each in sizes)
    most = 1 if setup.merge is None else max(1, setup.merge // largest)
    for token in range(3):
        hole = 0 if setup.merge is None else max(gap, page - 1 if setup.packed else 0) // largest
        assert (reads[token], size[token]) == plain(misses[token], sizes, last, page, setup.packed, most, hole)
    needed = misses[:, :-1].sum(axis=1) * plan.unit_bytes + misses[:, -1] * plan.last_bytes
    assert (size >= needed).all()  # all that is needed is read
    if page == 1 and gap < largest:  # packed or not, without pages there are no gaps
        assert (size == needed).all()  # and without pages and holes nothing else
    if setup.merge is None:
        assert (reads == misses.sum(axis=1) * len(sizes)).all()


def test_no_page_is_read_twice_where_neighbours_are_merged():
    """Packed units of 40 B on pages of 100 B: however misses lie, the pages read are those that hold a miss."""
    plan = plan_of()
    reader = Reader(plan, ReadSetup(packed=True, merge=10**6), 100)
    misses = np.random.default_rng(0).random((200, plan.units)) < 0.2
    sizes = reader.count(misses)[1]
    for row, size in zip(misses, sizes, strict=True):
        pages = {byte // 100 for unit in np.flatnonzero(row) for byte in range(unit * 40, (unit + 1) * 40)}
        assert size == 100 * len(pages)


def test_no_read_is_larger_than_asked_and_no_hole_larger():
    plan = plan_of()
    misses = np.random.default_rng(0).random((50, plan.units)) < 0.4
    reader = Reader(
        plan, ReadSetup(packed=True, merge=10 * plan.unit_bytes, gap=2 * plan.unit_bytes), 1, [2 * plan.unit_bytes]
    )
    token, first, last = reader.runs(misses)
    assert (last - first + 1).max() == 10
    for t, a, b in zip(token, first, last, strict=True):
        inside = np.flatnonzero(misses[t, a : b + 1])
        assert np.diff(inside).max(initial=1) <= 3
        assert misses[t, a] and misses[t, b]


@pytest.mark.parametrize("hw", ["oneplus12", "oneplus15r", "m1-max", "raspberry-pi5", "raspberry-pi5-sd", "m5-pro"])
@pytest.mark.parametrize("packed", [False, True])
def test_of_all_holes_each_batch_takes_the_fastest(hw, packed):
    flash = load_profile(hw).flash
    plan, setup, times = plan_of(), ReadSetup(packed=packed, merge=65536, gap=None), FlashTimes(flash, 4e6)
    misses = np.random.default_rng(0).random((40, plan.units)) < np.linspace(0, 0.9, 40)[:, None]
    page, tried = 64, holes(flash.model_copy(update={"page_size": 64}))
    found = Reader(plan, setup, page, tried, times).count(misses)
    each = [Reader(plan, setup, page, [gap]).count(misses) for gap in tried]
    seconds = np.array([times.alike(*one) for one in each])
    assert (times.alike(*found) == seconds.min(axis=0)).all()
    best = seconds.argmin(axis=0)  # the first, so the smallest hole
    for got, wanted in zip(found, zip(*each, strict=True), strict=True):
        assert (got == np.array(wanted)[best, np.arange(40)]).all()


@pytest.mark.parametrize("hw", ["oneplus12", "oneplus15r", "m1-max", "raspberry-pi5"])
@pytest.mark.parametrize("more", [(), ("--bundle", "--packed")])
def test_reading_through_holes_never_costs_more_than_it_saves(hw, more):
    speeds = []
    for gap in ("0", "auto"):
        words = ("--hw", hw, "--dram", "50%", "--policy", "dip-ca", "--merge", "256KiB", "--gap", gap, "--json", "-")
        speeds.append(json.loads(run_cli("replay", "sample", *words, *more).stdout)["throughput_tok_s"])
    assert speeds[1] >= speeds[0]


def test_neighbours_are_those_of_the_layout():
    order = np.arange(MODEL.intermediate_size)[::-1].copy()
    order[[0, 5]] = order[[5, 0]]
    layout = Layout({}, np.stack([order, np.arange(MODEL.intermediate_size)]).astype(np.int32))
    plans = [plan_of(layout=layout, layer=layer) for layer in (0, 1)]
    misses = np.zeros((1, plans[0].units), bool)
    misses[0, order[[3, 4, 5]]] = True  # side by side in layer 0 only
    counts = [Reader(plan, ReadSetup(merge=10**6), 1).count(misses)[0] for plan in plans]
    assert counts == [[1], [2]]


@pytest.fixture(scope="module")
def device():
    return flat_profile(flash="1 GB/s").model_copy(
        update={"flash": flat_profile().flash.model_copy(update={"latency": 1e-4, "queue_depth": 4, "page_size": 64})}
    )


@pytest.mark.parametrize("scope", ["matrix", "layer"])
@pytest.mark.parametrize("block", [1, 4])
def test_merging_changes_time_and_bytes_read_and_nothing_else(trace, device, block, scope):
    policy, rule = POLICIES.make("dip-ca")[1], EVICTIONS.make("lru")[1]

    def run(**reads):
        return replay(trace, device, policy, rule, Settings(dram="60%", block=block, cache_scope=scope, **reads))

    single, packed, merged, holes = (
        run(),
        run(packed=True),
        run(packed=True, merge=4096),
        run(packed=True, merge=4096, gap=512),
    )
    same = ("unit_requests", "unit_hits", "flash_bytes", "dram_bytes", "groups", "mlp_density")
    for other in (packed, merged, holes):
        assert [getattr(other, key) for key in same] == [getattr(single, key) for key in same]
        assert other.flash_read_bytes >= other.flash_bytes
    assert merged.flash_read_bytes <= packed.flash_read_bytes  # a page of two neighbours is read once
    assert merged.time_s.total < packed.time_s.total
    assert holes.flash_read_bytes >= merged.flash_read_bytes


def test_the_compiled_scan_sees_what_the_plain_one_sees(trace, device, monkeypatch):
    """Misses come from two paths: token by token, and of many tokens at once."""
    from hwsim.masking import streams

    policy, rule = POLICIES.make("dip-ca")[1], EVICTIONS.make("lfu")[1]
    found = []
    for worth in (1, 10**9):
        monkeypatch.setattr(streams, "_WORTH", worth)
        chosen = Settings(dram="60%", packed=True, merge=2048)
        found.append(replay(trace, device, policy, rule, chosen).to_json())
    assert found[0] == found[1]


def test_scattered_small_reads_make_half_of_the_weights_slower_than_all_of_them():
    """SmolLM2's rows and columns are a few hundred bytes: on a measured phone half of them cost more than streaming all."""
    found = run_cli("replay", "sample", "--hw", "oneplus15r", "--dram", "50%", "--policy", "dip", "--json", "-")
    import json

    dip = json.loads(found.stdout)
    dense = json.loads(
        run_cli("replay", "sample", "--hw", "oneplus15r", "--dram", "50%", "--policy", "dense", "--json", "-").stdout
    )
    assert dip["mlp_density"] < 0.51
    assert dip["flash_bytes"] < dense["flash_bytes"]
    assert dip["throughput_tok_s"] < dense["throughput_tok_s"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--gap", "4KiB"), "--gap: holes are read through where neighbours are merged; give --merge, too"),
        (("--merge", "4"), "--merge 4"),
        (("--merge", "0B"), "--merge 0"),
        (("--merge", "64KiB", "--gap", "x"), "--gap x"),
        (("--merge", "64KiB", "--timing", "closed-form"), "--timing closed-form knows no --bundle, --packed, --merge"),
    ],
)
def test_impossible_reads_are_one_line(options, says):
    found = run_cli("replay", "sample", "--hw", "pixel8", "--policy", "dip", *options, code=1)
    assert says in found.stderr
    assert len(found.stderr.strip().splitlines()) == 1


def test_a_setup_refuses_what_it_cannot_do():
    with pytest.raises(SettingError, match="give --merge"):
        ReadSetup(gap=None)
