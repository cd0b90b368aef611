"""Do the replays obey the laws that hold whatever the numbers are (docs/explanation/model.md)?

Laws of single masks are tested with the policies, laws of a single cache with the cache; here whole replays are held to
them, and to a twin in plain Python that recomputes every hit and byte from the masks.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from hwsim.cache.cache import Cache
from hwsim.model.shape import Bits, ModelShape
from hwsim.policy import Field, Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Sequence, Trace, TraceWriter
from tests.conftest import SEQUENCES, WITHOUT_A_FILE, flat_profile, write_trace
from tests.evictions.plain import plain_run
from tests.runs import Told, replay

DRAM, FLASH = 50e9, 1e9  # of flat_profile()
# bytes of a unit at 4 bits: a column of gate and one of up (120 rows each); a column of down (48 rows)
INPUT_BYTES, DOWN_BYTES = 2 * 60, 24
MLP_BYTES = 3 * 3 * 48 * 120 // 2
# attention 48x48, 24x48, 24x48, 48x48 in three layers, LM head 100x48, at 4 bits
RESIDENT = 3 * (2 * 48 * 48 + 2 * 24 * 48) // 2 + 100 * 48 // 2
KV_ENTRY = 3 * 2 * 24
DECODED = (40 - 6) + 25


def run(trace, name="dip", rule="lru", device=None, observers=(), parameters=None, **chosen):
    chosen = Settings(**{"dram": "60%", "per_token": True} | chosen)
    policy = name if isinstance(name, Policy) else POLICIES.make(name, parameters or {})[1]
    return replay(trace, device or flat_profile(), policy, EVICTIONS.make(rule)[1], chosen, observers=observers)


def masks_of(trace, *arguments, **more):
    """The result and all masks: {(layer, group): [set of units, ...]}."""
    masks = {}

    def listen(layer, group, token, mask):
        masks.setdefault((layer, group), []).append(set(np.flatnonzero(mask)))

    return run(trace, *arguments, observers=[Told(listen)], **more), masks


def by_sequence(masks):
    """One group's masks, cut where a sequence ends."""
    first = SEQUENCES[0].tokens - SEQUENCES[0].prompt
    return masks[:first], masks[first:]


# ---------------------------------------------------------------------- accounting


# rules with foresight must know all masks beforehand, and dip-ca reads the cache: those pairs are refused
PAIRS = [
    (name, rule)
    for name in ("dip", "dip-ca", "magnitude", "noisy-oracle")
    for rule in EVICTIONS.names()
    if name != "dip-ca" or not rule.startswith("belady")
]


@pytest.mark.parametrize(("name", "rule"), PAIRS)
def test_every_hit_and_byte_is_that_of_the_plain_twin(trace, name, rule):
    """Masks as the replay decided them; hits by sets and loops; bytes by hand."""
    result, masks = masks_of(trace, name, rule, dram="80%")
    total = np.zeros(result.tokens, int)
    sizes = {"input": INPUT_BYTES, "down": DOWN_BYTES, "neurons": 2 * 24 + DOWN_BYTES}
    for group in result.groups:
        assert group.unit_bytes == sizes[group.group]
        own = masks[group.layer, group.group]
        hits = [n for part in by_sequence(own) for n in plain_run(rule, part, group.units, group.capacity_units)[0]]
        asked = [len(mask) for mask in own]
        assert (group.requests, group.hits) == (sum(asked), sum(hits))
        assert group.dram_bytes == sum(hits) * group.unit_bytes
        assert group.flash_bytes == (sum(asked) - sum(hits)) * group.unit_bytes
        total += np.array(hits)
    assert [token.hits for token in result.per_token] == total.tolist()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(
    name=st.sampled_from(WITHOUT_A_FILE),
    rule=st.sampled_from(["lru", "lfu", "fifo", "none"]),
    percent=st.integers(0, 140),
    bits=st.sampled_from([2, 4, 4.5, 8]),
)
def test_what_is_read_is_what_is_asked_for(trace, name, rule, percent, bits):
    """Flash bytes + DRAM bytes = requested bytes + resident bytes + KV bytes, in total and for every token."""
    result = run(trace, name, rule, dram=f"{percent}%", bits=Bits(mlp=bits))
    lengths = [*range(7, 41), *range(1, 26)]
    resident = result.resident_bytes - result.kv_cache_bytes + result.streamed_bytes
    whole = {"dense": 3, "magnitude": 2, "up": 1, "gate": 1}.get(name, 0)  # matrices that are read whole
    expected_resident = RESIDENT + round(whole * 3 * 48 * 120 * bits / 8)
    assert resident == expected_resident
    assert result.kv_cache_bytes == 40 * KV_ENTRY
    requested = sum(group.requests * group.unit_bytes for group in result.groups)
    assert result.flash_bytes + result.dram_bytes == requested + DECODED * resident + sum(lengths) * KV_ENTRY
    misses = sum((group.requests - group.hits) * group.unit_bytes for group in result.groups)
    assert result.flash_bytes == misses + DECODED * result.streamed_bytes
    assert sum(token.flash_bytes for token in result.per_token) == result.flash_bytes
    assert sum(token.dram_bytes for token in result.per_token) == result.dram_bytes
    assert all(0 <= token.hits <= token.requests for token in result.per_token)
    assert result.resident_bytes + result.cache_bytes <= result.budget_bytes or result.streamed_bytes == 0
    for group in result.groups:
        assert 0 <= group.capacity_units <= group.units
    used = sum(group.capacity_units * group.unit_bytes for group in result.groups)
    assert used <= result.cache_bytes
    assert (result.streamed_bytes > 0) <= (used == 0)


def test_groups_and_tokens_add_up_to_the_totals(trace):
    result = run(trace, "dip-ca")
    for field in ("requests", "hits"):
        total = getattr(result, f"unit_{field}")
        assert sum(getattr(group, field) for group in result.groups) == total
        assert sum(getattr(token, field) for token in result.per_token) == total
    assert result.hit_rate == result.unit_hits / result.unit_requests
    assert result.throughput_tok_s == pytest.approx(result.tokens / result.time_s.total, rel=1e-12)
    assert result.latency_s.mean * result.tokens == pytest.approx(result.time_s.total, rel=1e-9)


# ---------------------------------------------------------------------- the cache-aware policy


def test_gamma_1_is_dip_to_the_last_byte(trace):
    plain, aware = run(trace, "dip"), run(trace, "dip-ca", parameters={"gamma": 1})
    differs = {"provenance", "notes"}
    assert plain.model_dump(exclude=differs) == aware.model_dump(exclude=differs)


def test_gamma_0_hits_all_it_can(trace):
    """min(k, cached) hits at each token; once the cache holds k units nothing is read from Flash any more."""
    result, masks = masks_of(trace, "dip-ca", parameters={"gamma": 0}, dram="90%")
    for group in result.groups:
        k = len(masks[group.layer, group.group][0])
        assert group.capacity_units >= k
        assert group.hits == k * (result.tokens - len(SEQUENCES))


@pytest.mark.parametrize("gamma", [0.0, 0.2, 0.5])
def test_a_smaller_gamma_never_reads_more_here(trace, gamma):
    """Not a law for every trace, but one for this: it tells that the penalty points the right way."""
    more = run(trace, "dip-ca", parameters={"gamma": gamma + 0.3})
    assert run(trace, "dip-ca", parameters={"gamma": gamma}).flash_bytes <= more.flash_bytes


# ---------------------------------------------------------------------- density


@pytest.mark.parametrize("name", ["dip", "dip-ca", "noisy-oracle", "magnitude"])
def test_density_1_asks_for_every_byte(trace, name):
    result = run(
        trace, name, parameters={"density": 1, **({"recall": 1, "precision": 1} if name == "noisy-oracle" else {})}
    )
    assert result.mlp_density == 1
    resident = 2 * MLP_BYTES // 3 if name == "magnitude" else 0
    assert sum(group.requests * group.unit_bytes for group in result.groups) == DECODED * (MLP_BYTES - resident)
    dense = run(trace, "dense")
    assert result.flash_bytes + result.dram_bytes == dense.flash_bytes + dense.dram_bytes


@pytest.mark.parametrize("density", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("name", ["dip", "dip-ca", "noisy-oracle"])
def test_density_is_met_to_within_the_rounding_of_units(trace, name, density):
    """Each keep rounds down to whole units: at most one of 48 inputs and one of 120 neurons is lost."""
    found = run(trace, name, parameters={"density": density}).mlp_density
    assert density - (2 / 48 + 1 / 120) / 3 <= found <= density


# ---------------------------------------------------------------------- cold and warm


class Same(Policy):
    """The first units, at every token."""

    count: int = 30

    def groups(self, model):
        return [Group("down", "neuron", ["down.column"], self.count / model.intermediate_size)]

    def score(self, ctx):
        return -np.arange(ctx.units, dtype=np.float32)


@pytest.mark.parametrize("timing", ["events", "closed-form"])
def test_a_cold_cache_pays_flash_and_the_same_mask_again_pays_dram(trace, timing):
    resident = RESIDENT + 2 * MLP_BYTES // 3
    budget = resident + 40 * KV_ENTRY + 3 * 30 * DOWN_BYTES  # exactly the masks
    result = run(trace, Same(), dram=budget, timing=timing)
    mask = 3 * 30 * DOWN_BYTES
    for token, length in enumerate([*range(7, 41), *range(1, 26)]):
        rest = (resident + length * KV_ENTRY) / DRAM
        cold = token in (0, 34)  # each sequence starts empty
        spent = mask / FLASH if cold else mask / DRAM
        assert result.per_token[token].latency_s == pytest.approx(rest + spent, rel=1e-9)
        assert result.per_token[token].flash_bytes == (mask if cold else 0)


def test_without_a_cache_every_token_is_cold(trace):
    result = run(trace, Same(), "none", dram="99%")
    assert {token.flash_bytes for token in result.per_token} == {3 * 30 * DOWN_BYTES}
    assert {group.capacity_units for group in result.groups} == {0}


def test_prompts_touch_nothing(tmp_path, trace):
    """The same decoded tokens with and without a prompt before them: same masks, same hits."""
    with_prompt = run(trace, "dip-ca", "lfu", dram=60_000)
    header = trace.header.model_copy(update={"sequences": [Sequence(tokens=34), Sequence(tokens=25)]})
    with TraceWriter(tmp_path / "cut.npz", header) as writer:
        for layer in range(3):
            for signal in header.signals:
                writer.write(layer, signal, 0, trace.read(layer, signal)[6:])
        writer.commit(header.tokens)
        writer.finish()
    with Trace(tmp_path / "cut.npz") as short:
        without = run(short, "dip-ca", "lfu", dram=60_000, kv_tokens=40)
    assert [token.hits for token in with_prompt.per_token] == [token.hits for token in without.per_token]
    assert with_prompt.groups == without.groups
    assert without.ttft_s is None
    assert with_prompt.ttft_s > 0


# ---------------------------------------------------------------------- uniform requests, locality, foresight


class Uniform(Policy):
    """Independent uniform masks of `k` units, from the run's own random numbers."""

    k: int = Field(12, gt=0)

    def groups(self, model):
        return [Group("down", "neuron", ["down.column"])]

    def select(self, ctx):
        mask = np.zeros(ctx.units, bool)
        mask[ctx.rng.choice(ctx.units, self.k, replace=False)] = True
        return mask


@pytest.fixture(scope="module")
def long_trace(tmp_path_factory):
    model = SMALL_MODEL.model_copy(update={"num_hidden_layers": 2})
    path = tmp_path_factory.mktemp("traces") / "long.npz"
    return write_trace(path, model, [Sequence(tokens=1500)], ("glu",))


@pytest.mark.parametrize("rule", ["lru", "lfu", "fifo"])
def test_uniform_independent_masks_hit_at_capacity_over_units(long_trace, rule):
    """True of every rule without foresight, LFU too: the past says nothing about the next mask. 36,000 requests with a
    spread of 0.5 give an error of 0.3 %; six of those are allowed."""
    with Trace(long_trace) as trace:
        result = run(trace, Uniform(), rule, dram="86%")
    capacity = result.groups[0].capacity_units
    assert 30 < capacity < 90
    warm = [token.hits / token.requests for token in result.per_token[50:]]
    assert np.mean(warm) == pytest.approx(capacity / 120, abs=0.016)


def test_uniform_independent_masks_gain_from_foresight(long_trace):
    with Trace(long_trace) as trace:
        blind, sighted = (run(trace, Uniform(), rule, dram="86%").hit_rate for rule in ("lru", "belady"))
    assert sighted > blind + 0.1


def test_shuffled_tokens_keep_popularity_and_lose_locality(tmp_path):
    """The control of the method: as often each unit, but LRU hits less; LFU, which counts, loses much less."""
    model = SMALL_MODEL.model_copy(update={"num_hidden_layers": 1})
    tokens = 800
    rng = np.random.default_rng(7)
    drift = np.zeros((tokens, 120))
    for token in range(1, tokens):
        drift[token] = 0.97 * drift[token - 1] + rng.normal(size=120)
    worth = np.abs(drift) * np.exp(0.3 * rng.normal(size=120))
    asked = np.argsort(-worth, axis=1)[:, :24]
    masks = np.zeros((tokens, 120), bool)
    np.put_along_axis(masks, asked, True, axis=1)
    shuffled = masks[rng.permutation(tokens)]
    assert (masks.sum(axis=0) == shuffled.sum(axis=0)).all()
    rates = {}
    for rule in ("lru", "lfu"):
        for label, which in (("real", masks), ("shuffled", shuffled)):
            cache = Cache(model.intermediate_size, 40, EVICTIONS.make(rule)[1])
            cache.start()
            rates[rule, label] = sum(cache.step(mask)[1] for mask in which) / masks.sum()
    assert rates["lru", "real"] > 0.75
    assert rates["lru", "shuffled"] < rates["lru", "real"] - 0.2
    lost = {rule: rates[rule, "real"] - rates[rule, "shuffled"] for rule in ("lru", "lfu")}
    assert lost["lfu"] < lost["lru"]


@pytest.mark.parametrize("dram", ["75%", "85%", "95%"])
def test_belady_reads_least_from_flash(trace, dram):
    """Masks of magnitude are fixed; foresight is best, among rules that admit every mask as long as it fits."""
    policy = {"density": 0.75}
    flash = {rule: run(trace, "magnitude", rule, parameters=policy, dram=dram) for rule in EVICTIONS.names()}
    capacity = flash["belady"].groups[0].capacity_units
    k = flash["belady"].unit_requests // (3 * DECODED)
    if capacity >= k:
        always = [flash[rule] for rule in EVICTIONS.names() if EVICTIONS.find(rule)[1].admission == "always"]
        assert all(flash["belady"].flash_bytes <= each.flash_bytes for each in always)
    assert all(flash["belady-bypass"].flash_bytes <= each.flash_bytes for each in flash.values())
    assert flash["none"].flash_bytes == max(each.flash_bytes for each in flash.values())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=15)
@given(low=st.integers(0, 110), more=st.integers(1, 40), rule=st.sampled_from(["lru", "belady", "none"]))
def test_more_dram_never_reads_more_flash(trace, low, more, rule):
    """Holds for rules whose smaller cache is always part of the larger one (stack rules: LRU, Belady)."""
    small, large = (
        run(trace, "dip", rule, parameters={"density": 0.3}, dram=f"{percent}%") for percent in (low, low + more)
    )
    assert large.flash_bytes <= small.flash_bytes


# ---------------------------------------------------------------------- the same run, the same bytes


@pytest.mark.parametrize("rule", ["lfu", "belady"])
@pytest.mark.parametrize("name", ["dip", "noisy-oracle"])
def test_the_same_run_gives_the_same_json(small_trace, name, rule):
    texts = []
    for _ in range(2):
        with Trace(small_trace) as trace:
            texts.append(run(trace, name, rule).to_json())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["format"] == "hwsim-result"


def test_the_seed_decides_random_policies_and_nothing_else(trace):
    drop = {"provenance"}
    random = [run(trace, "noisy-oracle", seed=seed).model_dump(exclude=drop) for seed in (0, 1)]
    fixed = [run(trace, "dip", seed=seed).model_dump(exclude=drop) for seed in (0, 1)]
    assert random[0] != random[1]
    assert fixed[0] == fixed[1]
    assert run(trace, "dip", seed=1).provenance["seed"] == 1


def test_listening_and_progress_change_nothing(trace):
    seen, steps = [], []
    heard = replay(
        trace,
        flat_profile(),
        POLICIES.make("dip-ca")[1],
        EVICTIONS.make("lru")[1],
        Settings(dram="60%", per_token=True),
        observers=[Told(lambda *mask: seen.append(mask), progress=lambda *step: steps.append(step))],
    )
    assert heard.model_dump(exclude={"provenance", "notes"}) == run(trace, "dip-ca").model_dump(
        exclude={"provenance", "notes"}
    )
    assert len(seen) == 2 * 3 * DECODED
    assert steps[2] == ("masks and hits", 3, 3)
    assert steps[-1] == ("time", DECODED, DECODED)


# ---------------------------------------------------------------------- the order of size of a real model


def test_phi3_medium_dense_streaming_by_hand(tmp_path):
    """A model of the paper on its device, dense: 7.11 GB at 1 and 60 GB/s. One layer is enough: 40 are alike."""
    shape = ModelShape(
        name="one layer of phi3-medium",
        num_hidden_layers=1,
        hidden_size=5120,
        intermediate_size=17920,
        num_attention_heads=40,
        num_key_value_heads=10,
        head_dim=128,
        vocab_size=32064,
    )
    path = write_trace(tmp_path / "phi3.npz", shape, [Sequence(tokens=2)], ("input",))
    mlp, attention, head = 137_625_600, 32_768_000, 82_083_840
    with Trace(path) as trace:
        device = flat_profile(budget="100 MB", dram="60 GB/s", flash="1 GB/s")
        result = run(trace, "dense", device=device, dram=None)
    kept = 100_000_000 - 2 * 2560
    assert result.streamed_bytes == mlp + attention + head - kept
    seconds = [kept / 60e9 + entries * 2560 / 60e9 + result.streamed_bytes / 1e9 for entries in (1, 2)]
    assert [token.latency_s for token in result.per_token] == pytest.approx(seconds, rel=1e-9)
    assert math.isclose(result.throughput_tok_s, 2 / sum(seconds), rel_tol=1e-9)
