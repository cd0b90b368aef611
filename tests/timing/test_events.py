"""Flash's table, and events against the closed form for any model, device and counts."""

import math

import numpy as np
import pytest
import simpy
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim.device.flash_times import flash_seconds, stream_seconds
from hwsim.device.profile import Flash
from hwsim.masking.counts import Counts
from hwsim.memory.placement import Room, place
from hwsim.memory.planning import Units, plan_layers
from hwsim.model.shape import Bits, ModelShape
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.timing import closed_form as bounds
from hwsim.timing.events import run_events
from hwsim.timing.overlap import find, modes
from hwsim.timing.reads import ReadSetup
from hwsim.timing.server import Device
from hwsim.timing.work import Decode, make_work
from hwsim.trace import Sequence
from hwsim.trace.sequences import Sequences
from hwsim.trace.steps import Steps
from tests.conftest import WITHOUT_A_FILE, flat_profile
from tests.runs import replay
from tests.toy import BITS, DOWN_USE, INPUT_USE, KV_ENTRY, RESIDENT, TOY, Scripted, device_of, times

TABLE = {
    "unit": "1 MB/s",
    "queue_depth": [1, 4],
    "read": {"4 KiB": [40, 160], "64 KiB": [400, 1280]},
}


def placed(groups, model, bits, room):
    """Where a model lies whose layers all have the same groups."""
    return place(plan_layers([groups], model, Units(bits)), model, bits, room, 0)


def decode_of(counts, placement, device, sequences, bits=BITS):
    """A decode whose units are read one by one."""
    return Decode(counts, placement, device, Steps.of(Sequences(sequences)), bits, ReadSetup())


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


@pytest.mark.parametrize("overlap", [name for name, mode in modes().items() if mode.closed_form])
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
def test_events_equal_the_closed_form_for_any_model_device_and_counts(data):
    """The closed form here is a plain loop of this test; both timings of hwsim must give the same."""
    model = data.draw(MODELS)
    bits = Bits(mlp=data.draw(st.sampled_from([2, 4, 4.5, 16])), attention=data.draw(st.sampled_from([4, 8])))
    kind = data.draw(st.sampled_from(["dense", "dip", "noisy-oracle", "magnitude"]))
    sequences = [
        Sequence(tokens=tokens, prompt=data.draw(st.integers(0, tokens - 1)))
        for tokens in data.draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    ]
    kv_tokens = max(sequence.tokens for sequence in sequences)
    room = Room(f"{data.draw(st.integers(0, 130))}%", kv_tokens)
    placement = placed(POLICIES.make(kind)[1].groups(model), model, bits, room)
    plans = placement.plans
    device = flat_profile(dram=data.draw(RATES), flash=data.draw(RATES))
    tokens = sum(sequence.tokens - sequence.prompt for sequence in sequences)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    limits = np.array([plan.units for plan in plans[0]], int)
    requests = rng.integers(0, limits + 1, (tokens, model.num_hidden_layers, len(limits)))
    counts = Counts(requests.astype(np.int32), rng.integers(0, requests + 1).astype(np.int32))
    decode = decode_of(counts, placement, device, sequences, bits)
    for overlap in ("none", "group"):
        by_hand, token = [], 0
        for sequence in sequences:
            for length in range(sequence.prompt + 1, sequence.tokens + 1):
                seconds = (placement.bytes.resident - placement.bytes.streamed) / device.dram.bandwidth
                seconds += length * sum(placement.bytes.kv.stored) / device.dram.bandwidth
                seconds += placement.bytes.streamed / device.flash.read_bandwidth
                for layer in range(model.num_hidden_layers):
                    for index, plan in enumerate(plans[layer]):
                        hits = int(counts.hits[token, layer, index])
                        misses = int(counts.requests[token, layer, index]) - hits
                        both = (
                            misses * sum(plan.slice_bytes) / device.flash.read_bandwidth,
                            hits * sum(plan.slice_bytes) / device.dram.bandwidth,
                        )
                        seconds += max(both) if overlap == "group" else sum(both)
                by_hand.append(seconds)
                token += 1
        closed = bounds.closed_form(decode, find(overlap).closed_form)
        events = run_events(make_work(decode), overlap=overlap)
        for timing in (closed, events):
            assert timing.token_s == pytest.approx(by_hand, rel=1e-9)
            assert timing.times.total == pytest.approx(sum(by_hand), rel=1e-9)
            assert sum(timing.times.by_account) == pytest.approx(timing.times.total, rel=1e-9)


def test_one_request_for_each_token_group_and_device():
    """Never one for each unit: 3 tokens of the toy's counts on devices that serve one request at a time."""
    placement = placed(Scripted().groups(TOY), TOY, BITS, Room(RESIDENT + 3 * KV_ENTRY + 96, 3))
    both = [[[used, used] for used in pair] for pair in zip(INPUT_USE, DOWN_USE, strict=True)]
    uses = np.array(both, np.int32).transpose(0, 2, 1, 3)  # [tokens, layers, groups, (requests, hits)]
    counts = Counts(uses[..., 0], uses[..., 1])
    work = make_work(decode_of(counts, placement, device_of({}), [Sequence(tokens=3)]))
    for overlap, seconds in (("none", 22.08), ("group", 10.48 + 5.76 + 5.12)):
        timing = run_events(work, overlap=overlap)
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


def test_no_policy_is_faster_than_a_token_that_asks_for_nothing(trace):
    policy, rule = POLICIES.make("dip-ca")[1], EVICTIONS.make("lfu")[1]
    result = replay(trace, flat_profile(), policy, rule, Settings(dram="60%", per_token=True))
    placement = placed(policy.groups(SMALL_MODEL), SMALL_MODEL, Bits(), Room("60%", 40))
    fastest = (placement.bytes.pinned + sum(placement.bytes.kv.stored)) / 50e9
    assert bounds.fastest_token(placement, flat_profile(), 1) == pytest.approx(fastest, rel=1e-12)
    assert min(times(result)) > fastest
    # 60 of 160 resident bytes streamed, as in the toy
    streamed = placed(Scripted().groups(TOY), TOY, BITS, Room(24 + 100, 3))
    assert bounds.fastest_token(streamed, device_of({}), 2) == pytest.approx((100 + 16) / 100 + 60 / 10, rel=1e-12)


def test_uniform_hit_rate():
    assert bounds.uniform_hit_rate(24, 64) == 0.375
