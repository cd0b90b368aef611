"""Does the time come out as a person with a pencil would compute it, and do engine and closed form agree?"""

import math

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim import bounds
from hwsim.demand import Demand
from hwsim.devices import Device, flash_seconds, stream_seconds
from hwsim.engine import run_events
from hwsim.errors import SettingError
from hwsim.loads import make_load
from hwsim.model import Bits, ModelShape
from hwsim.placement import place, plan_groups
from hwsim.plugins import EVICTIONS, POLICIES
from hwsim.policy import Group, Policy
from hwsim.profile import Flash, Profile
from hwsim.simulation import Settings, replay
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Sequence, Trace

from .conftest import WITHOUT_A_FILE, flat_profile, write_trace

# ---------------------------------------------------------------------- a toy, small enough for a pencil

TOY = ModelShape(
    name="toy",
    num_hidden_layers=2,
    hidden_size=4,
    intermediate_size=8,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=2,
    vocab_size=16,
)
# At 8 bits a weight is a byte. A layer's attention: q 4x4, k 2x4, v 2x4, o 4x4 = 48 B; LM head 16x4 = 64 B; so 160 B are
# resident. A KV entry is 2 layers x (2 keys + 2 values) = 8 B. A unit of `input` is a column of gate and one of up,
# 2 x 8 B; a unit of `down` is a column of down, 4 B. With 96 B for caches each of the 6 matrices gets 16 B:
# `input` holds 32 // 16 = 2 units, `down` 16 // 4 = 4.
BITS = Bits(mlp=8, attention=8, lm_head=8, kv_cache=8, predictor=8)
RESIDENT, KV_ENTRY, INPUT, DOWN = 160, 8, 16, 4
SCRIPT = {"input": [[0, 1], [1, 2], [0, 1]], "down": [[0, 1, 2], [2, 3], [0]]}
# LRU by hand, the same in both layers: (units asked for, of them hits)
#   input: {0 1} miss both; {1 2} hit 1, 0 leaves; {0 1} hit 1
#   down:  {0 1 2} miss all; {2 3} hit 2, nobody leaves; {0} hit 0
INPUT_USE, DOWN_USE = [(2, 0), (2, 1), (2, 1)], [(3, 0), (2, 1), (1, 1)]


class Scripted(Policy):
    """Asks for what the script says."""

    script: dict[str, list[list[int]]] = SCRIPT

    def groups(self, model):
        return [
            Group("input", "hidden", ["gate.column", "up.column"]),
            Group("down", "neuron", ["down.column"]),
        ]

    def select(self, ctx):
        mask = np.zeros(ctx.units, bool)
        mask[self.script[ctx.group.name][ctx.token]] = True
        return mask


def device_of(sections):
    """100 B/s DRAM, 10 B/s Flash, and what is given besides."""
    flat = {
        "name": "toy",
        "dram": {"budget": "1 kB", "bandwidth": "100 B/s"},
        "flash": {"read_bandwidth": "10 B/s"} | sections.get("flash", {}),
    }
    return Profile.model_validate(sections | flat)


THREE = (Sequence(tokens=3),)


def toy(tmp_path, sequences=THREE, *, policy=None, device=None, budget=RESIDENT + 3 * KV_ENTRY + 96, **more):
    path = write_trace(tmp_path / "toy.npz", TOY, list(sequences), ("input",))
    with Trace(path) as trace:
        chosen = Settings(dram=budget, bits=BITS, per_token=True, **more)
        return replay(trace, device or device_of({}), policy or Scripted(), EVICTIONS.make("lru")[1], chosen)


def times(result):
    return [token.latency_s for token in result.per_token]


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_toy(tmp_path, timing):
    """Every token: 160 B resident and the KV cache from DRAM, then twice (two layers) what the masks ask for."""
    result = toy(tmp_path, timing=timing)
    by_hand = [
        # resident, KV, input Flash + DRAM, down Flash + DRAM
        1.60 + 0.08 + 2 * (32 / 10 + 0 / 100 + 12 / 10 + 0 / 100),  # 10.48
        1.60 + 0.16 + 2 * (16 / 10 + 16 / 100 + 4 / 10 + 4 / 100),  # 6.16
        1.60 + 0.24 + 2 * (16 / 10 + 16 / 100 + 0 / 10 + 4 / 100),  # 5.44
    ]
    assert by_hand == pytest.approx([10.48, 6.16, 5.44], rel=1e-12)
    assert times(result) == pytest.approx(by_hand, rel=1e-12)
    assert result.time_s.total == pytest.approx(22.08, rel=1e-12)
    assert result.throughput_tok_s == pytest.approx(3 / 22.08, rel=1e-12)
    assert result.time_s.resident == pytest.approx(4.80, rel=1e-12)
    assert result.time_s.kv_cache == pytest.approx(0.48, rel=1e-12)
    assert result.time_s.mlp == pytest.approx(16.80, rel=1e-12)
    assert (result.time_s.streamed, result.time_s.attention, result.time_s.compute) == (0, 0, 0)
    assert result.latency_s.mean == pytest.approx(7.36, rel=1e-12)
    assert result.latency_s.p50 == pytest.approx(6.16, rel=1e-12)
    assert result.latency_s.p95 == pytest.approx(6.16 + 0.9 * (10.48 - 6.16), rel=1e-12)  # linear between ranks
    assert result.latency_s.max == pytest.approx(10.48, rel=1e-12)
    assert result.ttft_s is None


def test_toy_bytes(tmp_path):
    result = toy(tmp_path)
    assert [group.capacity_units for group in result.groups] == [2, 4, 2, 4]
    assert (result.unit_requests, result.unit_hits) == (24, 8)
    assert result.hit_rate == 8 / 24
    flash = [2 * (2 * INPUT + 3 * DOWN), 2 * (INPUT + DOWN), 2 * INPUT]
    dram = [
        RESIDENT + KV_ENTRY,
        RESIDENT + 2 * KV_ENTRY + 2 * (INPUT + DOWN),
        RESIDENT + 3 * KV_ENTRY + 2 * (INPUT + DOWN),
    ]
    assert [token.flash_bytes for token in result.per_token] == flash == [88, 40, 32]
    assert [token.dram_bytes for token in result.per_token] == dram
    assert (result.flash_bytes, result.dram_bytes) == (160, sum(dram))
    assert (result.resident_bytes, result.kv_cache_bytes, result.streamed_bytes) == (184, 24, 0)
    # 6 input units of 16 weights and 6 down units of 4, of 96 weights for each of 3 tokens; layers are alike
    assert result.mlp_density == pytest.approx((6 * 16 + 6 * 4) / (3 * 96), rel=1e-12)


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_toy_overlap_takes_the_longer_of_flash_and_dram_in_each_group(tmp_path, timing):
    by_hand = [
        1.60 + 0.08 + 2 * (max(3.2, 0.0) + max(1.2, 0.0)),
        1.60 + 0.16 + 2 * (max(1.6, 0.16) + max(0.4, 0.04)),
        1.60 + 0.24 + 2 * (max(1.6, 0.16) + max(0.0, 0.04)),
    ]
    assert times(toy(tmp_path, timing=timing, overlap="group")) == pytest.approx(by_hand, rel=1e-12)


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_toy_streams_what_is_resident_and_does_not_fit(tmp_path, timing):
    """100 of 160 resident bytes fit beside the KV cache; 60 are read from Flash, only there, and no cache is left."""
    result = toy(tmp_path, budget=24 + 100, timing=timing)
    assert (result.streamed_bytes, result.cache_bytes, result.unit_hits) == (60, 0, 0)
    by_hand = [
        1.00 + 0.08 * token + 6.0 + 2 * (asked_in * INPUT + asked_down * DOWN) / 10
        for token, ((asked_in, _), (asked_down, _)) in enumerate(zip(INPUT_USE, DOWN_USE, strict=True), 1)
    ]
    assert times(result) == pytest.approx(by_hand, rel=1e-12)
    assert result.flash_bytes == 3 * 60 + 2 * (6 * INPUT + 6 * DOWN)
    assert result.dram_bytes == 3 * 100 + (1 + 2 + 3) * KV_ENTRY
    assert result.resident_bytes == 124


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_toy_dense_pins_what_fits_and_streams_the_rest(tmp_path, timing):
    """All 160 + 192 B of weights; 280 - 24 B lie in DRAM, 96 B come from Flash at every token."""
    result = toy(tmp_path, policy=POLICIES.make("dense")[1], timing=timing)
    assert times(result) == pytest.approx([2.56 + 0.08 * token + 9.6 for token in (1, 2, 3)], rel=1e-12)
    assert (result.hit_rate, result.unit_requests, result.groups) == (None, 0, [])
    assert (result.flash_bytes, result.dram_bytes) == (3 * 96, 3 * 256 + 6 * KV_ENTRY)
    assert result.mlp_density == 1


def test_latency_is_paid_once_for_each_batch_that_reads_flash(tmp_path):
    """A batch is one group's misses of one token: 4, 4 and 2 of them; a group without misses pays nothing."""
    plain = times(toy(tmp_path))
    device = device_of({"flash": {"latency": "0.25 s"}})
    found = times(toy(tmp_path, device=device))
    assert np.subtract(found, plain) == pytest.approx([4 * 0.25, 4 * 0.25, 2 * 0.25], rel=1e-9)
    streamed = times(toy(tmp_path, device=device, policy=POLICIES.make("dense")[1]))
    assert streamed == pytest.approx([2.56 + 0.08 * token + 9.6 + 0.25 for token in (1, 2, 3)], rel=1e-12)


def test_reads_are_rounded_up_to_pages_in_time_and_energy_but_not_in_flash_bytes(tmp_path):
    """Pages of 6 B: a slice of 8 B takes 12 B, one of 4 B takes 6 B; what is asked for stays what it is."""
    plain = toy(tmp_path)
    paged = toy(tmp_path, device=device_of({"flash": {"page_size": "6 B"}}))
    misses = [(2 - hits_in, asked - hits) for (_, hits_in), (asked, hits) in zip(INPUT_USE, DOWN_USE, strict=True)]
    extra = [2 * (inputs * 2 * (12 - 8) + downs * (6 - 4)) / 10 for inputs, downs in misses]
    assert np.subtract(times(paged), times(plain)) == pytest.approx(extra, rel=1e-9)
    assert (paged.flash_bytes, paged.dram_bytes) == (plain.flash_bytes, plain.dram_bytes)
    # by hand: 2 layers x (4 input units of two slices, 4 down units of one)
    assert plain.flash_read_bytes == plain.flash_bytes == 2 * (4 * 16 + 4 * 4)
    assert paged.flash_read_bytes == 2 * (4 * 2 * 12 + 4 * 6)


@pytest.mark.parametrize(("timing", "read"), [("events", 2 * (4 * 2 * 12 + 4 * 6)), ("closed-form", 160)])
def test_flash_energy_is_that_of_the_bytes_that_flash_reads(tmp_path, timing, read):
    energy = {"dram_read": "2 mJ/B", "flash_read": "5 mJ/B"}
    paged = toy(tmp_path, device=device_of({"flash": {"page_size": "6 B"}, "energy": energy}), timing=timing)
    assert paged.flash_read_bytes == read
    assert paged.energy_j == pytest.approx(paged.dram_bytes * 2e-3 + read * 5e-3, rel=1e-12)


def test_streamed_weights_are_read_in_one_piece_and_not_rounded(tmp_path):
    device = device_of({"flash": {"page_size": "64 B"}})
    dense = toy(tmp_path, device=device, policy=POLICIES.make("dense")[1])
    assert dense.flash_read_bytes == dense.flash_bytes == 3 * 96


def test_compute_is_added_at_its_rate_with_a_fixed_cost_for_each_kernel(tmp_path):
    """Two operations a weight; attention multiplies each head's 2 numbers with each key and each value."""
    device = device_of({"compute": {"rate": "1000 OP/s", "overhead": "0.5 s"}})
    plain, found = toy(tmp_path), toy(tmp_path, device=device)
    by_hand = []
    for token, ((inputs, _), (downs, _)) in enumerate(zip(INPUT_USE, DOWN_USE, strict=True), 1):
        resident = 2 * 160  # weights are bytes here
        attention = 2 * (2 * 2 * 2 * 2) * token  # 2 ops x layers x (key, value) x heads x head_dim, for each entry
        masked = 2 * 2 * (inputs * 16 + downs * 4)
        kernels = 2 + 2 * 2  # one for the rest of each layer, one for each group of each layer
        by_hand.append((resident + attention + masked) / 1000 + kernels * 0.5)
    assert np.subtract(times(found), times(plain)) == pytest.approx(by_hand, rel=1e-9)
    assert found.time_s.compute == pytest.approx(sum(by_hand), rel=1e-12)


def test_compute_may_know_its_rate_or_its_fixed_cost_alone(tmp_path):
    """Of the whole decode: 6 kernels a token; two operations for each weight read and for each pair in attention."""
    operations = 3 * 2 * 160 + 2 * 16 * (1 + 2 + 3) + 2 * 2 * (6 * 16 + 6 * 4)
    rate = toy(tmp_path, device=device_of({"compute": {"rate": "1000 OP/s"}}))
    assert rate.time_s.compute == pytest.approx(operations / 1000, rel=1e-12)
    fixed = toy(tmp_path, device=device_of({"compute": {"overhead": "0.5 s"}}))
    assert fixed.time_s.compute == pytest.approx(3 * 6 * 0.5, rel=1e-12)


def test_energy_by_hand(tmp_path):
    """Moved bytes by their source, operations, and the base power over the whole time."""
    energy = {"dram_read": "2 mJ/B", "flash_read": "5 mJ/B", "compute": "1 mJ/OP", "base_power": "3 W"}
    result = toy(tmp_path, device=device_of({"energy": energy}))
    operations = 3 * 2 * 160 + 2 * 16 * (1 + 2 + 3) + 2 * 2 * (6 * 16 + 6 * 4)
    by_hand = result.dram_bytes * 2e-3 + result.flash_bytes * 5e-3 + operations * 1e-3 + 22.08 * 3
    assert result.energy_j == pytest.approx(by_hand, rel=1e-12)
    assert toy(tmp_path).energy_j is None
    only_moved = toy(tmp_path, device=device_of({"energy": {"dram_read": "2 mJ/B", "flash_read": "5 mJ/B"}}))
    assert only_moved.energy_j == pytest.approx(result.dram_bytes * 2e-3 + 160 * 5e-3, rel=1e-12)


def test_kv_cache_grows_by_one_entry_a_token_prompt_included(tmp_path):
    """Of 5 tokens 2 are the prompt; decoded tokens read 3, 4 and 5 entries, then a new sequence begins at 1."""
    sequences = [Sequence(tokens=5, prompt=2), Sequence(tokens=1)]
    dense = toy(tmp_path, sequences, policy=POLICIES.make("dense")[1], budget=10**6)
    assert times(dense) == pytest.approx([3.52 + 0.08 * entries for entries in (3, 4, 5, 1)], rel=1e-12)
    assert dense.kv_cache_bytes == 5 * KV_ENTRY
    assert dense.tokens == 4
    assert dense.dram_bytes == 4 * (160 + 192) + (3 + 4 + 5 + 1) * KV_ENTRY


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("timing", "foo", "timing='foo': must be one of events, closed-form"),
        ("overlap", "x", "overlap='x': must be one of none, group"),
        ("overlap", None, "overlap=None: must be one of none, group"),
        ("seed", -1, "seed=-1: must be a whole number from 0"),
        ("seed", 1.5, "seed=1.5: must be a whole number from 0"),
        ("kv_tokens", 0, "kv_tokens=0: must be a whole number from 1, or None"),
        ("dram", -1, "dram=-1: must be bytes from 0, text such as '4 GB' or '50%', or None"),
        ("dram", 4e9, "dram=4000000000.0: must be bytes from 0"),
        ("bits", {"mlp": 4}, "bits={'mlp': 4}: must be hwsim.model.Bits"),
    ],
)
def test_impossible_settings_are_refused(field, value, rule):
    with pytest.raises(SettingError) as found:
        Settings(**{field: value})
    assert str(found.value).startswith(f"setting {rule}")


# ---------------------------------------------------------------------- time to first token


def test_ttft_reads_every_weight_once(tmp_path):
    """Pinned weights from DRAM, all others from Flash; then the prompt's KV entries."""
    sequences = [Sequence(tokens=5, prompt=2)]
    result = toy(tmp_path, sequences, budget=RESIDENT + 5 * KV_ENTRY + 96)
    assert result.ttft_s == pytest.approx(160 / 100 + 192 / 10 + 2 * KV_ENTRY / 100, rel=1e-12)
    dense = toy(tmp_path, sequences, policy=POLICIES.make("dense")[1], budget=RESIDENT + 5 * KV_ENTRY + 96)
    assert dense.ttft_s == pytest.approx((160 + 96) / 100 + 96 / 10 + 2 * KV_ENTRY / 100, rel=1e-12)


def test_ttft_is_the_mean_of_those_with_a_prompt(tmp_path):
    sequences = [Sequence(tokens=5, prompt=2), Sequence(tokens=1), Sequence(tokens=5, prompt=4)]
    result = toy(tmp_path, sequences, budget=RESIDENT + 5 * KV_ENTRY + 96)
    assert result.ttft_s == pytest.approx(160 / 100 + 192 / 10 + 3 * KV_ENTRY / 100, rel=1e-12)


def test_ttft_counts_arithmetic(tmp_path):
    """Two operations for each of 352 weights and prompt token, attention over 1 .. p entries, a kernel a layer."""
    device = device_of({"compute": {"rate": "1000 OP/s", "overhead": "0.5 s"}})
    sequences = [Sequence(tokens=5, prompt=2), Sequence(tokens=5, prompt=4)]
    budget = RESIDENT + 5 * KV_ENTRY + 96
    plain, found = (toy(tmp_path, sequences, device=each, budget=budget) for each in (None, device))
    per_prompt = [(2 * 352 * p + 2 * 16 * sum(range(1, p + 1))) / 1000 + 2 * 0.5 for p in (2, 4)]
    assert found.ttft_s - plain.ttft_s == pytest.approx(sum(per_prompt) / 2, rel=1e-9)


# ---------------------------------------------------------------------- Flash

TABLE = {
    "unit": "1 MB/s",
    "queue_depth": [1, 4],
    "read": {"4 KiB": [40, 160], "64 KiB": [400, 1280]},
}


def flash_with_table(depth=4, **more):
    return Flash.model_validate({"read_bandwidth": "1 GB/s", "queue_depth": depth, "table": TABLE, **more})


@pytest.mark.parametrize(("size", "depth", "rate"), [(4096, 1, 40), (4096, 4, 160), (65536, 1, 400), (65536, 4, 1280)])
def test_a_measured_point_is_returned_as_measured(size, depth, rate):
    assert flash_with_table().table.bandwidth(size, depth) == pytest.approx(rate * 1e6, rel=1e-15)


def test_between_points_the_table_is_linear_in_logarithms():
    table = flash_with_table().table
    # 16 KiB is halfway between 4 and 64 KiB in logarithms, depth 2 halfway between 1 and 4: geometric means
    assert table.bandwidth(16384, 1) == pytest.approx(math.sqrt(40 * 400) * 1e6, rel=1e-12)
    assert table.bandwidth(4096, 2) == pytest.approx(math.sqrt(40 * 160) * 1e6, rel=1e-12)
    assert table.bandwidth(16384, 2) == pytest.approx((40 * 400 * 160 * 1280) ** 0.25 * 1e6, rel=1e-12)
    # 8 KiB lies a quarter of the way
    assert table.bandwidth(8192, 4) == pytest.approx(160**0.75 * 1280**0.25 * 1e6, rel=1e-12)


def test_beyond_the_table_nothing_is_gained():
    table = flash_with_table().table
    assert table.bandwidth(10**9, 100) == table.bandwidth(65536, 4)
    # a read of 1 KiB takes as long as one of 4 KiB
    assert 1024 / table.bandwidth(1024, 1) == pytest.approx(4096 / 40e6, rel=1e-12)


@given(st.integers(1, 10**7), st.integers(1, 100))
def test_a_larger_read_takes_no_less_time(size, depth):
    table = flash_with_table().table
    assert (size + 1) / table.bandwidth(size + 1, depth) >= size / table.bandwidth(size, depth) * (1 - 1e-12)


def test_reads_of_a_batch_keep_the_queue_full():
    seconds = flash_seconds(flash_with_table(depth=4))
    # four at once are four times as fast as one, so they do not wait for each other: two rounds of four and one of two
    assert seconds(10, (4096,)) == pytest.approx(8 * 4096 / 160e6 + 4096 / 40e6, rel=1e-9)
    assert seconds(1, (4096,)) == pytest.approx(4096 / 40e6, rel=1e-9)  # only one read is outstanding
    # two slices of different size a unit: each is a read of its own. All four begin at once, and those of 64 KiB, which
    # are 3.2 times as fast as one, wait for each other
    alone, served = flash_with_table().table.times([4096, 65536])
    assert alone[0] + served[0] == pytest.approx(4096 / 40e6, rel=1e-9)
    assert alone[1] + served[1] == pytest.approx(65536 / 400e6, rel=1e-9)
    assert served[1] > 1e-5 > 1e-9 > served[0]
    assert seconds(2, (4096, 65536)) == pytest.approx(alone.mean() + 2 * served.sum(), rel=1e-9)
    assert seconds(2, (4096, 65536)) > 2 * 4096 / 160e6 + 2 * 65536 / 1280e6  # a batch's end is waited for
    assert seconds(0, (4096,)) == 0
    paged = flash_seconds(flash_with_table(depth=4, page_size="4 KiB"))
    assert paged(12, (4097,)) == seconds(12, (8192,))


def test_what_is_streamed_is_one_large_read():
    assert stream_seconds(flash_with_table(), 10**9) == pytest.approx(1e9 / 1280e6, rel=1e-12)
    assert stream_seconds(flash_with_table(), 0) == 0
    flat = Flash.model_validate({"read_bandwidth": "1 GB/s", "latency": "90 us"})
    assert stream_seconds(flat, 10**9) == pytest.approx(1 + 90e-6, rel=1e-12)


def test_a_table_moves_the_event_engine_and_not_the_closed_form(trace):
    flat, measured = device_of({}), device_of({"flash": {"queue_depth": 4, "table": TABLE}})
    policy, rule = POLICIES.make("dip")[1], EVICTIONS.make("lru")[1]
    closed, events = (
        [replay(trace, device, policy, rule, Settings(dram="60%", timing=timing)) for device in (flat, measured)]
        for timing in ("closed-form", "events")
    )
    assert closed[0].time_s == closed[1].time_s
    assert events[0].time_s.total == pytest.approx(closed[0].time_s.total, rel=1e-9)
    # 10 B/s flat, megabytes a second in the table: what is left is what DRAM gives
    from_dram = sum(group.dram_bytes for group in events[1].groups) / 100
    assert from_dram < events[1].time_s.mlp < from_dram * 1.001


# ---------------------------------------------------------------------- engine and closed form


@pytest.mark.parametrize("overlap", ["none", "group"])
@pytest.mark.parametrize("dram", ["10%", "45%", "70%", "100%"], ids=["streamed", "little", "half", "all fits"])
@pytest.mark.parametrize("name", WITHOUT_A_FILE)
def test_events_equal_the_closed_form(trace, name, dram, overlap):
    policy, rule, device = POLICIES.make(name)[1], EVICTIONS.make("lfu")[1], flat_profile()
    results = [
        replay(trace, device, policy, rule, Settings(dram=dram, overlap=overlap, timing=timing, per_token=True))
        for timing in ("events", "closed-form")
    ]
    events, closed = results
    assert events.time_s.total == pytest.approx(closed.time_s.total, rel=1e-9)
    assert times(events) == pytest.approx(times(closed), rel=1e-9)
    for part, seconds in events.time_s:
        assert seconds == pytest.approx(getattr(closed.time_s, part), rel=1e-9), part
    for result in results:
        parts = [seconds for part, seconds in result.time_s if part != "total"]
        assert sum(parts) == pytest.approx(result.time_s.total, rel=1e-9)
        assert sum(times(result)) == pytest.approx(result.time_s.total, rel=1e-9)
    for part, seconds in events.busy_s:
        assert seconds == pytest.approx(getattr(closed.busy_s, part), rel=1e-9), part
    same = {"time_s", "latency_s", "throughput_tok_s", "busy_s", "events", "per_token", "provenance"}
    assert events.model_dump(exclude=same) == closed.model_dump(exclude=same)
    assert events.events > 0
    assert closed.events == 0


MODELS = st.builds(
    ModelShape,
    name=st.just("random"),
    num_hidden_layers=st.integers(1, 4),
    hidden_size=st.integers(1, 300),
    intermediate_size=st.integers(1, 700),
    num_attention_heads=st.just(6),
    num_key_value_heads=st.sampled_from([1, 2, 3, 6]),
    head_dim=st.integers(1, 40),
    vocab_size=st.integers(1, 5000),
    gated=st.booleans(),
)
RATES = st.floats(1e3, 1e12).map(lambda rate: f"{rate:.6e} B/s")


@settings(max_examples=150)
@given(st.data())
def test_events_equal_the_closed_form_for_any_model_device_and_demand(data):
    """The closed form here is a plain loop of this test; both timings of hwsim must give the same."""
    model = data.draw(MODELS)
    bits = Bits(mlp=data.draw(st.sampled_from([2, 4, 4.5, 16])), attention=data.draw(st.sampled_from([4, 8])))
    kind = data.draw(st.sampled_from(["dense", "dip", "noisy-oracle", "magnitude"]))
    plans = plan_groups(POLICIES.make(kind)[1].groups(model), model, bits)
    sequences = [
        Sequence(tokens=tokens, prompt=data.draw(st.integers(0, tokens - 1)))
        for tokens in data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    ]
    kv_tokens = max(sequence.tokens for sequence in sequences)
    placement = place(plans, model, bits, f"{data.draw(st.integers(0, 130))}%", kv_tokens, 0)
    device = flat_profile(dram=data.draw(RATES), flash=data.draw(RATES))
    tokens = sum(sequence.tokens - sequence.prompt for sequence in sequences)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    limits = np.array([plan.units for plan in plans], int)
    requests = rng.integers(0, limits + 1, (tokens, model.num_hidden_layers, len(plans)))
    demand = Demand(requests.astype(np.int32), rng.integers(0, requests + 1).astype(np.int32))
    for overlap in (False, True):
        by_hand, token = [], 0
        for sequence in sequences:
            for length in range(sequence.prompt + 1, sequence.tokens + 1):
                seconds = (placement.resident_weights - placement.streamed) / device.dram.bandwidth
                seconds += length * placement.kv_entry / device.dram.bandwidth
                seconds += placement.streamed / device.flash.read_bandwidth
                for layer in range(model.num_hidden_layers):
                    for index, plan in enumerate(plans):
                        hits = int(demand.hits[token, layer, index])
                        misses = int(demand.requests[token, layer, index]) - hits
                        both = (
                            misses * sum(plan.slice_bytes) / device.flash.read_bandwidth,
                            hits * sum(plan.slice_bytes) / device.dram.bandwidth,
                        )
                        seconds += max(both) if overlap else sum(both)
                by_hand.append(seconds)
                token += 1
        closed = bounds.closed_form(demand, placement, device, sequences, overlap=overlap)
        load = make_load(demand, placement, device, sequences, bits=bits)
        events = run_events(load, overlap="group" if overlap else "none")
        for timing in (closed, events):
            assert timing.token_s == pytest.approx(by_hand, rel=1e-9)
            assert timing.times.total == pytest.approx(sum(by_hand), rel=1e-9)
            parts = [seconds for part, seconds in timing.times if part != "total"]
            assert sum(parts) == pytest.approx(timing.times.total, rel=1e-9)


def test_one_request_for_each_token_group_and_device():
    """Never one for each unit: 3 tokens of the toy's demand on devices that serve one request at a time."""
    plans = plan_groups(Scripted().groups(TOY), TOY, BITS)
    placement = place(plans, TOY, BITS, RESIDENT + 3 * KV_ENTRY + 96, 3, 0)
    both = [[[used, used] for used in pair] for pair in zip(INPUT_USE, DOWN_USE, strict=True)]
    uses = np.array(both, np.int32).transpose(0, 2, 1, 3)  # [tokens, layers, groups, (requests, hits)]
    demand = Demand(uses[..., 0], uses[..., 1])
    load = make_load(demand, placement, device_of({}), [Sequence(tokens=3)])
    for overlap, seconds in (("none", 22.08), ("group", 10.48 + 5.76 + 5.12)):
        timing = run_events(load, overlap=overlap)
        assert timing.times.total == pytest.approx(seconds, rel=1e-12)
        # weights and KV cache of two layers, and the LM head; then Flash: 2 groups, 2 groups, 1; DRAM: none, 2, 2; in
        # each of 2 layers
        assert timing.events == 3 * 3 + 2 * (2 + 2 + 1) + 2 * (0 + 2 + 2)


def test_a_device_serves_one_request_after_the_other():
    env = simpy.Environment()
    device = Device(env, "flash")
    for seconds in (2.0, 3.0):
        env.process(device.serve(seconds))
    env.run()
    assert (env.now, device.busy, device.requests) == (5.0, 5.0, 2)


@given(st.lists(st.tuples(st.floats(0, 5), st.floats(0, 5)), max_size=20))
def test_a_device_is_a_resource_of_simpy_in_fewer_events(requests: list[tuple[float, float]]):
    """Requests that come at any time, also while others wait."""

    def run(serve, env):
        done = {}

        def ask(number, at, seconds):
            yield env.timeout(at)
            yield from serve(seconds)
            done[number] = env.now

        for number, (at, seconds) in enumerate(requests):
            env.process(ask(number, at, seconds))
        env.run()
        return done

    env, twin = simpy.Environment(), simpy.Environment()
    turn = simpy.Resource(twin, capacity=1)

    def plain(seconds):
        with turn.request() as request:
            yield request
            yield twin.timeout(seconds)

    assert run(Device(env, "flash").serve, env) == pytest.approx(run(plain, twin), rel=1e-12, abs=1e-12)


def test_a_group_of_attention_is_reported_as_attention(trace):
    class CutsOutput(Policy):
        """Columns of o by position."""

        def groups(self, model):
            return [Group("o", "attention", ["o.column"], 0.5)]

        def score(self, ctx):
            return -np.arange(ctx.units, dtype=np.float32)

    result = replay(trace, flat_profile(), CutsOutput(), EVICTIONS.make("lru")[1], Settings(dram="96%"))
    # 24 of 48 columns of o, 24 B each, in each of 3 layers; all are misses where a sequence begins, and hits then if
    # the cache holds them: (0.96 x weights - resident) shared over 3 matrices
    weights = 3 * (2 * 48 * 48 // 2 + 2 * 24 * 48 // 2 + 3 * 48 * 120 // 2) + 100 * 48 // 2
    cache = math.floor(0.96 * weights + 1e-9) - (weights - 3 * 48 * 48 // 2)
    capacity = cache // (3 * 24)
    assert [group.capacity_units for group in result.groups] == [capacity] * 3
    hits = 3 * min(24, capacity) * (result.tokens - 2)
    assert result.unit_hits == hits
    assert result.time_s.attention == pytest.approx(
        (result.unit_requests - hits) * 24 / 1e9 + hits * 24 / 50e9, rel=1e-9
    )
    assert result.time_s.mlp == 0
    assert result.mlp_density == 1


# ---------------------------------------------------------------------- limits


def test_no_policy_is_faster_than_a_token_that_asks_for_nothing(trace):
    policy, rule = POLICIES.make("dip-ca")[1], EVICTIONS.make("lfu")[1]
    result = replay(trace, flat_profile(), policy, rule, Settings(dram="60%", per_token=True))
    model = SMALL_MODEL
    plans = plan_groups(policy.groups(model), model, Bits())
    placement = place(plans, model, Bits(), "60%", 40, 0)
    fastest = (placement.pinned_weights + placement.kv_entry) / 50e9
    assert bounds.fastest_token(placement, flat_profile(), 1) == pytest.approx(fastest, rel=1e-12)
    assert min(times(result)) > fastest
    # 60 of 160 resident bytes streamed, as in the toy
    streamed = place(plan_groups(Scripted().groups(TOY), TOY, BITS), TOY, BITS, 24 + 100, 3, 0)
    assert bounds.fastest_token(streamed, device_of({}), 2) == pytest.approx((100 + 16) / 100 + 60 / 10, rel=1e-12)


def test_uniform_hit_rate():
    assert bounds.uniform_hit_rate(24, 64) == 0.375
