"""A toy, small enough for a pencil, against the engine and the closed form; time to first token."""

import numpy as np
import pytest

from hwsim.errors import SettingError
from hwsim.simulation.plugins import POLICIES
from hwsim.simulation.settings import Settings
from hwsim.trace import Sequence
from tests.toy import DOWN, DOWN_USE, INPUT, INPUT_USE, KV_ENTRY, RESIDENT, device_of, times, toy


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
        ("kv_tokens", 0, "kv_tokens=0: must be a whole number from 1 to 1000000000, or None"),
        ("dram", -1, "dram=-1: must be bytes from 0, text such as '4 GB' or '50%', or None"),
        ("dram", 4e9, "dram=4000000000.0: must be bytes from 0"),
        ("bits", {"mlp": 4}, "bits={'mlp': 4}: must be text or hwsim.model.Bits"),
    ],
)
def test_impossible_settings_are_refused(field, value, rule):
    with pytest.raises(SettingError) as found:
        Settings(**{field: value})
    assert str(found.value).startswith(f"setting {rule}")


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
