"""KV entries and fixed states layer by layer: sizes, reads and time by hand, and against a walk over all tokens."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hwsim
from hwsim.device.profile import Profile
from hwsim.errors import ContractError
from hwsim.memory.groups import Plans
from hwsim.memory.kv_cache import KVCache
from hwsim.memory.placement import Room, place
from hwsim.memory.planning import plan_layers
from hwsim.model.layers import LayerShape
from hwsim.model.shape import Bits, ModelShape
from hwsim.policy import Group
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.timing.closed_form import prefill_seconds
from hwsim.trace import Sequence, Trace
from hwsim.trace.synth import Windows, synthesize
from tests.runs import replay

_HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4}
_FULL = LayerShape(attention="full", kv_elements=16, macs_per_entry=32, intermediate_size=24, **_HEADS)
_WINDOW = LayerShape(attention="window", window=5, kv_elements=16, macs_per_entry=32, intermediate_size=24, **_HEADS)
_SHARED = LayerShape(
    attention="shared", window=5, kv_from=1, macs_per_entry=32, other_parameters=512, intermediate_size=48
)
_LINEAR = LayerShape(attention="linear", state_elements=100, other_parameters=300, intermediate_size=24)
_BARE = LayerShape(attention="none", other_parameters=7)
MODEL = ModelShape(
    name="mixed", num_hidden_layers=5, hidden_size=16, intermediate_size=48, num_attention_heads=4,
    num_key_value_heads=2, head_dim=4, vocab_size=100, layers=(_FULL, _WINDOW, _SHARED, _LINEAR, _BARE),
    lm_head_parameters=800, outside_parameters=64, embedding_row=40,
)  # fmt: skip
FLAT = {"name": "flat", "source": "here", "dram": {"budget": "1 MB", "bandwidth": "50 GB/s"},
        "flash": {"read_bandwidth": "1 GB/s"}}  # fmt: skip


def flat() -> Profile:
    return Profile.model_validate(FLAT)


def test_sizes_by_hand() -> None:
    """At 8 bits 16 B an entry; windows hold 5 entries; the shared layer stores none and reads those of layer 1."""
    kv = KVCache.of(MODEL, Bits())
    assert (kv.stored, kv.read) == ((16, 16, 0, 0, 0), (16, 16, 16, 0, 0))
    assert kv.states == (0, 0, 0, 200, 0)  # 100 numbers of 16 bits
    assert kv.reserved(3) == 3 * 16 + 3 * 16
    assert kv.reserved(9) == 9 * 16 + 5 * 16
    assert kv.state_traffic == 400
    assert KVCache.of(MODEL, Bits(), window=2).reserved(9) == 2 * 16 + 2 * 16
    assert kv.lengths(np.array([3, 9])).tolist() == [[3, 3, 3, 3, 3], [9, 5, 5, 9, 9]]
    assert kv.read_bytes(np.array([3, 9])).tolist() == [3 * 48, 9 * 16 + 5 * 32]


def test_weights_by_hand() -> None:
    """Layers 0 and 1: q and o 16 x 16, k and v 8 x 16; MLPs of 3 x 16 x 24 or 48; at 4 bits half a byte each."""
    found = place(Plans(((),) * 5), MODEL, Bits(), Room(10**6, 9), 0).bytes
    attention = [768 // 2, 768 // 2, 512 // 2, 300 // 2, 4]  # 7 numbers of 4 bits take 4 B
    assert found.unmasked.attention == tuple(attention)
    assert found.unmasked.mlp == (576, 576, 1152, 576, 0)
    assert found.unmasked.lm_head == 800 // 2 + 64 // 2
    assert found.looked_up == 20
    assert found.weights == sum(attention) + 576 * 3 + 1152 + 432
    assert found.cache == 10**6 - found.reserved - found.resident
    assert found.reserved == 9 * 16 + 5 * 16 + 200


@given(
    st.integers(0, 40), st.integers(1, 40), st.lists(st.sampled_from([None, 1, 3, 8]), min_size=1, max_size=4),
    st.integers(1, 7),
)  # fmt: skip
def test_chunks_of_a_prompt_are_those_of_a_walk(start: int, length: int, windows: list[int | None], size: int) -> None:
    count = len(windows)
    kv = KVCache((size,) * count, (size,) * count, tuple(windows), (0,) * count, (3,) * count)
    end, entries, pairs = start + length, 0, 0
    for window in windows:
        read = {
            entry for token in range(start, end) for entry in range(0 if window is None else max(0, token + 1 - window), token + 1)
        }  # fmt: skip
        entries += len(read)
        pairs += sum(min(token + 1, window or token + 1) for token in range(start, end))
    assert kv.chunk(start, end) == (entries * size, 3 * pairs)
    lengths = np.arange(start + 1, end + 1)
    assert kv.mean_macs(lengths) * length == pytest.approx(3 * pairs)
    assert kv.read_bytes(lengths).sum() == size * pairs


def test_time_to_first_token_by_hand() -> None:
    """A prompt of 9 tokens in chunks of 4: each reads all weights, its entries, and the states twice."""
    placement = place(Plans(((),) * 5), MODEL, Bits(), Room(10**6, 9), 0)
    weights, flash = placement.bytes.resident, placement.bytes.looked_up / 1e9
    entries = [4 * 16 + 4 * 32, 8 * 16 + 8 * 32, 9 * 16 + 5 * 32]  # of the window layers: tokens 0-3, 0-7, 4-8
    expected = sum((weights + size + 400) / 50e9 + flash for size in entries)
    found = prefill_seconds(placement, flat(), [Sequence(tokens=10, prompt=9)], chunk=4)
    assert found == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("options", [
    {"cache_scope": "layer"}, {"cache_scope": "global"}, {"cache_shares": "traffic"}, {"cache_shares": "input=2,down=1"},
    {"cache_scope": "layer", "cache_shares": "input=2,down=1"}, {"block": 4, "packed": True},
    {"overlap": "prefetch", "prefetch": "cross-layer"},
])  # fmt: skip
def test_layers_that_differ_share_caches(tmp_path, options) -> None:
    """A layer without an MLP has no cache, and takes no share of one."""
    synthesize(tmp_path / "t.npz", MODEL, Windows(30, 15), signals=["input", "glu"])
    result = hwsim.replay(tmp_path / "t.npz", "pixel8", "dip", dram="3 kB", **options)
    assert {group.layer for group in result.groups} == {0, 1, 2, 3}
    assert sum(group.capacity_units * group.unit_bytes for group in result.groups) > 0


def test_a_policy_that_cuts_attention_is_refused_where_a_layer_has_other_matrices() -> None:
    group = Group("attention", axis="hidden", slices=["q.column"], keep=0.5, needs=["attn_input"])
    with pytest.raises(
        ContractError,
        match=r"layer 2: group 'attention': cuts q.column, which this layer of mixed does not "
        r"have: its attention is shared, without q, k, v and o; choose a policy that cuts MLPs only",
    ):
        plan_layers([[group]] * 5, MODEL)


@pytest.mark.parametrize("policy", ["dense", "dip", "dip-ca"])
def test_layers_that_differ_are_replayed_alike_by_events_and_closed_form(tmp_path, policy) -> None:
    """Groups are in layers with an MLP only, of their own width; all bytes are counted once."""
    synthesize(tmp_path / "t.npz", MODEL, Windows(30, 15), signals=["input", "glu"])

    with Trace(tmp_path / "t.npz") as trace:
        assert trace.model == MODEL
        assert trace.read(2, "glu").shape == (30, 48)
        assert not any(name.startswith("layers/004") for name in trace._members)
        results = [
            replay(
                trace, flat(), POLICIES.make(policy)[1], EVICTIONS.make("lru")[1], Settings(dram="60%", timing=timing)
            )
            for timing in ("closed-form", "events")
        ]
    plain, events = results
    assert events.time_s.total == pytest.approx(plain.time_s.total, rel=1e-9)
    assert (events.flash_bytes, events.dram_bytes) == (plain.flash_bytes, plain.dram_bytes)
    assert plain.kv_cache_bytes == 15 * 16 + 5 * 16
    assert (plain.state_bytes, plain.looked_up_bytes) == (200, 20)
    if policy == "dense":
        tokens, lengths = 30, list(range(1, 16)) * 2
        kv = sum(16 * length + 32 * min(length, 5) for length in lengths) + 400 * tokens
        streamed = plain.streamed_bytes
        resident = plain.resident_bytes - plain.kv_cache_bytes - plain.state_bytes
        assert plain.flash_bytes == tokens * (streamed + 20)
        assert plain.dram_bytes == tokens * resident + kv
        assert plain.mlp_density == 1
    else:
        assert [(group.layer, group.group, group.units) for group in plain.groups] == [
            (layer, name, units)
            for layer, neurons in ((0, 24), (1, 24), (2, 48), (3, 24))
            for name, units in (("input", 16), ("down", neurons))
        ]
        assert plain.mlp_density == pytest.approx(0.5, abs=0.03)
