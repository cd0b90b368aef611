"""Each mechanism of a device by hand, and switched off again."""

import json

import numpy as np
import pytest

from hwsim.device.effective import MECHANISMS, effective
from hwsim.device.flash_times import FlashTimes
from hwsim.device.profile import Flash, Profile, known_profiles, load_profile
from hwsim.errors import SettingError
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings, read_bits
from hwsim.trace import Sequence
from tests.runs import replay
from tests.timing.cli import run_cli
from tests.toy import DOWN_USE, INPUT_USE, KV_ENTRY, RESIDENT, device_of, times, toy


def test_choosing_a_mask_and_keeping_the_cache_cost_what_the_profile_says(tmp_path):
    """Each token chooses from 4 and from 8 units in each of 2 layers, and asks for some of them."""
    device = device_of({"compute": {"selection": "0.01 s", "bookkeeping": "0.1 s"}})
    plain, found = toy(tmp_path), toy(tmp_path, device=device)
    by_hand = [
        2 * (0.01 * (4 + 8) + 0.1 * (inputs + downs))
        for (inputs, _), (downs, _) in zip(INPUT_USE, DOWN_USE, strict=True)
    ]
    assert np.subtract(times(found), times(plain)) == pytest.approx(by_hand, rel=1e-9)
    assert found.time_s.compute == pytest.approx(sum(by_hand), rel=1e-9)


def test_arithmetic_goes_at_the_rate_of_its_bits(tmp_path):
    """4-bit weights at 1000 operations a second, wider ones at 500: the toy's have 8."""
    rates = device_of({"compute": {"rates": {4: "1000 OP/s", 16: "500 OP/s"}}})
    half, whole = (device_of({"compute": {"rate": rate}}) for rate in ("500 OP/s", "1000 OP/s"))
    assert toy(tmp_path, device=rates).time_s.compute == toy(tmp_path, device=half).time_s.compute  # all in 8 bits
    section = rates.compute
    assert [section.rate_for(bits) for bits in (2, 4, 4.5, 8, 16, 32)] == [1000, 1000, 500, 500, 500, 500]
    operations = 3 * 2 * 160 + 2 * 16 * (1 + 2 + 3), 2 * 2 * (6 * 16 + 6 * 4)  # resident and attention; masked
    assert toy(tmp_path, device=whole).time_s.compute == pytest.approx(sum(operations) / 1000, rel=1e-12)


def test_an_engine_reads_dram_at_its_own_rate(tmp_path):
    device = device_of({})
    fast = device.model_copy(update={"dram": device.dram.model_copy(update={"engines": {"cpu": 50.0, "npu": 80.0}})})
    plain, cpu = toy(tmp_path, device=fast), toy(tmp_path, device=fast, engine="cpu")
    assert cpu.time_s.resident == pytest.approx(2 * plain.time_s.resident, rel=1e-12)
    assert cpu.time_s.kv_cache == pytest.approx(2 * plain.time_s.kv_cache, rel=1e-12)
    with pytest.raises(SettingError, match="--engine gpu: toy has no such engine"):
        toy(tmp_path, device=fast, engine="gpu")
    with pytest.raises(SettingError, match="it names none"):
        toy(tmp_path, device=device, engine="cpu")


def test_fills_go_through_dram(tmp_path):
    """What comes from Flash is written beside reading it (10 B/s against 100: hidden), and read again at 100 B/s."""
    plain, found = toy(tmp_path), toy(tmp_path, fills=True)
    read_again = [flash.flash_bytes / 100 for flash in plain.per_token]
    assert np.subtract(times(found), times(plain)) == pytest.approx(read_again, rel=1e-9)
    assert found.busy_s.dram == pytest.approx(plain.busy_s.dram + 2 * sum(read_again), rel=1e-9)
    assert (found.flash_bytes, found.dram_bytes) == (plain.flash_bytes, plain.dram_bytes)


def test_a_window_bounds_the_kv_cache(tmp_path):
    """3 tokens with a window of 2: entries 1, 2, 2; and room for 2 in DRAM."""
    found = toy(tmp_path, kv_window=2, policy=POLICIES.make("dense")[1], budget=10**6)
    assert times(found) == pytest.approx([3.52 + 0.08 * entries for entries in (1, 2, 2)], rel=1e-12)
    assert found.kv_cache_bytes == 2 * KV_ENTRY
    assert found.dram_bytes == 3 * 352 + 5 * KV_ENTRY


def test_a_prompt_goes_in_chunks(tmp_path):
    """A prompt of 5 in chunks of 2 reads all weights three times, and the entries up to the end of each: 2, 4 and 5."""
    sequences = [Sequence(tokens=7, prompt=5)]
    device = device_of({"compute": {"rate": "1000 OP/s"}})

    def first(**more):
        return toy(tmp_path, sequences, device=device, budget=RESIDENT + 7 * KV_ENTRY + 96, **more).ttft_s

    weights = 160 / 100 + 192 / 10
    arithmetic = (2 * 5 * 352 + 2 * 16 * 15) / 1000
    assert first() == pytest.approx(weights + 5 * KV_ENTRY / 100 + arithmetic, rel=1e-12)
    assert first(prefill_chunk=2) == pytest.approx(3 * weights + (2 + 4 + 5) * KV_ENTRY / 100 + arithmetic, rel=1e-12)
    assert first(prefill_chunk=9) == first()
    each = [
        (weights + end * KV_ENTRY / 100, (2 * n * 352 + 2 * 16 * p) / 1000)
        for n, end, p in ((2, 2, 3), (2, 4, 7), (1, 5, 5))
    ]
    assert first(prefill_chunk=2, overlap="pipeline") == pytest.approx(sum(map(max, each)), rel=1e-12)


def test_energy_is_the_sum_of_its_sources(tmp_path):
    energy = {
        "dram_read": "2 mJ/B",
        "flash_read": "5 mJ/B",
        "dram_write": "3 mJ/B",
        "compute": "1 mJ/OP",
        "base_power": "3 W",
    }
    for fills in (False, True):
        found = toy(tmp_path, device=device_of({"energy": energy}), fills=fills)
        parts = found.energy_by_source_j
        written = found.flash_bytes if fills else 0
        assert parts.dram_read == pytest.approx((found.dram_bytes + written) * 2e-3, rel=1e-12)
        assert parts.dram_write == pytest.approx(written * 3e-3, rel=1e-12)
        assert parts.flash == pytest.approx(found.flash_bytes * 5e-3, rel=1e-12)
        assert parts.base == pytest.approx(3 * found.time_s.total, rel=1e-12)
        assert found.energy_j == pytest.approx(sum(value for _, value in parts), rel=1e-12)
        assert found.power_w == pytest.approx(found.energy_j / found.time_s.total, rel=1e-12)
    least = toy(tmp_path, device=device_of({"energy": {"dram_read": "2 mJ/B", "flash_read": "5 mJ/B"}}))
    assert (least.energy_by_source_j.dram_write, least.energy_by_source_j.compute, least.energy_by_source_j.base) == (
        None,
    ) * 3
    assert toy(tmp_path).energy_by_source_j is None
    assert toy(tmp_path).power_w is None


FULL = {
    "name": "full",
    "dram": {"budget": "1 GB", "bandwidth": "50 GB/s"},
    "flash": {"read_bandwidth": "1 GB/s", "latency": "90 us", "page_size": "4 KiB",
              "thermal": {"after": "1 us", "factor": 0.5}},
    "compute": {"rate": "10 GOPS", "overhead": "5 us", "selection": "1 ns", "bookkeeping": "5 ns"},
}  # fmt: skip


@pytest.mark.parametrize("mechanism", [each for each in MECHANISMS if each not in ("requests", "spread")])
def test_each_mechanism_costs_time_and_can_be_left_out(trace, mechanism):
    device, policy, rule = Profile.model_validate(FULL), POLICIES.make("dip")[1], EVICTIONS.make("lru")[1]
    whole = replay(trace, device, policy, rule, Settings(dram="60%"))
    less = replay(trace, device, policy, rule, Settings(dram="60%", ignore=(mechanism,)))
    assert less.time_s.total < whole.time_s.total
    assert less.unit_hits == whole.unit_hits


@pytest.mark.parametrize("name", sorted(known_profiles()))
def test_with_everything_left_out_the_closed_form_is_left(trace, name):
    """Every profile: flat bandwidths, no latency, no compute, nothing at once."""
    device, policy, rule = load_profile(name), POLICIES.make("dip-ca")[1], EVICTIONS.make("lfu")[1]
    for overlap in ("none", "group"):
        events = replay(trace, device, policy, rule, Settings(dram="60%", ignore=MECHANISMS, overlap=overlap))
        closed = replay(trace, device, policy, rule, Settings(dram="60%", timing="closed-form", overlap=overlap))
        assert events.time_s.total == pytest.approx(closed.time_s.total, rel=1e-9)


def test_requests_are_what_makes_a_table_slow(trace):
    device, policy, rule = load_profile("oneplus15r"), POLICIES.make("dip")[1], EVICTIONS.make("lru")[1]
    whole = replay(trace, device, policy, rule, Settings(dram="60%"))
    less = replay(trace, device, policy, rule, Settings(dram="60%", ignore=("requests",)))
    assert less.time_s.total < whole.time_s.total / 5
    assert effective(device, ignore=("requests",)).flash.table is None


def test_scattered_small_reads_are_slower_by_what_the_profile_says(trace):
    """Half of the rate from 1000 B on, 0.7 halfway (in logarithms) from there to 10 B; large reads are as they were."""
    table = {"unit": "MB/s", "queue_depth": [1], "read": {"1 B": [1], "64 KiB": [1]}}
    spread = {"below": "4 KiB", "rate": {"10 B": 1, "1000 B": 0.5}}
    flash = Flash.model_validate({"read_bandwidth": "1 MB/s", "queue_depth": 1, "table": table, "spread": spread})
    for span, share in ((1, 1), (10, 1), (100, 0.5**0.5), (1000, 0.5), (10**9, 0.5)):
        small, large = (FlashTimes(flash, span).seconds([(8, size)]) for size in (4096, 4097))
        assert small == pytest.approx(8 * 4096e-6 / share, rel=1e-12)
        assert large == pytest.approx(8 * 4097e-6, rel=1e-12)
    device = load_profile("oneplus12")
    policy, rule = POLICIES.make("dip")[1], EVICTIONS.make("lru")[1]
    whole = replay(trace, device, policy, rule, Settings(dram="60%"))
    less = replay(trace, device, policy, rule, Settings(dram="60%", ignore=("spread",)))
    assert whole.time_s.total == less.time_s.total  # all of this model lies within 128 MB


def test_what_is_left_out_is_told(trace):
    done = run_cli("replay", "sample", "--hw", "oneplus12", "--dram", "60%", "--policy", "dip", "--ignore", "pages,requests",
                   "--engine", "cpu", "--json", "-")  # fmt: skip
    told = json.loads(done.stdout)["provenance"]["settings"]
    assert (told["ignore"], told["engine"]) == (["pages", "requests"], "cpu")
    done = run_cli("replay", "sample", "--hw", "pixel8", "--policy", "dip", "--ignore", "page", code=1)
    assert "--ignore 'page': no such mechanism; did you mean 'pages'?" in done.stderr


@pytest.mark.parametrize(
    ("name", "bits"),
    [("Q4_0", 4.5), ("q8_0", 8.5), ("int4-g128", 4.125), ("Q6_K", 6.5625), ("9/2", 4.5), ("4", 4.0)],
)
def test_bits_go_by_the_names_of_formats(name, bits):
    assert read_bits(f"mlp={name}").mlp == bits


def test_formats_have_the_bits_of_their_blocks():
    gguf = pytest.importorskip("gguf")
    from hwsim.model.shape import FORMATS

    for name in FORMATS:
        kind = getattr(gguf.GGMLQuantizationType, name.upper().replace("INT8", "I8"), None)
        if kind is not None:
            values, size = gguf.GGML_QUANT_SIZES[kind]
            assert FORMATS[name] == 8 * size / values, name


def test_profiles_cover_classes_of_devices_and_say_where_numbers_come_from():
    found = {name: load_profile(name) for name in known_profiles()}
    assert len(found) >= 12
    assert len({each.kind for each in found.values()}) >= 4
    for name, each in found.items():
        assert each.kind is not None, name
        for section in (each.dram, each.flash, each.energy, each.flash.table, each.flash.queue):
            if section is not None:
                assert section.source, name
                assert section.confidence, name
        if each.flash.table:  # rates of a table never rise above what the interface can do: no slip of a digit
            rates = [rate for row in each.flash.table.read.values() for rate in row]
            assert max(rates) * each.flash.table.unit <= 1.5 * each.flash.read_bandwidth, name


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ({"flash": {"queue": {"latency": "1 us"}}}, "flash.queue.per_kib is missing"),
        ({"compute": {"rate": "1 TOPS", "rates": {4: "1 TOPS"}}}, "rate and rates"),
        ({"compute": {"rates": {"x": "1 TOPS"}}}, "must map bits of a weight to rates"),
        ({"compute": {"rates": {-1: "1 TOPS"}}}, "must be more than 0"),
        ({"compute": {"rates": {}}}, "must map bits"),
        ({"dram": {"peak_bandwidth": "60 GB/s", "engines": {"npu": "70 GB/s"}}}, "npu is above peak_bandwidth"),
        ({"flash": {"thermal": {"after": "1 s", "factor": 2}}}, "flash.thermal.factor"),
        ({"flash": {"spread": {"below": "4 KiB", "rate": {"1 GB": 2}}}}, "shares must be more than 0 and at most 1"),
        ({"flash": {"spread": {"below": "4 KiB", "rate": {"2 GB": 1, "1 GB": 1}}}}, "must rise"),
        ({"kind": "toaster"}, "kind"),
    ],
)
def test_impossible_profiles_are_one_line(tmp_path, section, says):
    import yaml

    data = {"name": "x", "dram": {"budget": "1 GB", "bandwidth": "50 GB/s"}, "flash": {"read_bandwidth": "1 GB/s"}}
    for key, value in section.items():
        data[key] = data[key] | value if isinstance(data.get(key), dict) else value
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(data, sort_keys=False))
    done = run_cli("replay", "sample", "--hw", tmp_path / "x.yaml", "--policy", "dip", code=1)
    assert says in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
