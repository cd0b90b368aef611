"""Units of several neighbours, and the order in which neurons lie: exact bytes, and what must not change does not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hwsim.analysis.coactivation import _looked_up, _ones, chain, order_trace, pack
from hwsim.device.flash_times import flash_seconds
from hwsim.device.profile import Profile
from hwsim.errors import ContractError, PluginError, SettingError, TraceError
from hwsim.masking.counts import Counts
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.memory.neuron_order import KIND, Blocks, Layout, read_layout, write_layout
from hwsim.memory.planning import Units
from hwsim.model.shape import Bits
from hwsim.policy import Group, Policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.replay import replay as replay_run
from hwsim.simulation.settings import Settings
from hwsim.testing import SMALL_MODEL
from hwsim.trace import Sequence, Trace
from hwsim.util.arrayfile import write_arrays
from tests.conftest import flat_profile, write_trace
from tests.runs import Told, layout, plans_of, replay, replay_masks, run_of

NEURONS, LAYERS = SMALL_MODEL.intermediate_size, SMALL_MODEL.num_hidden_layers


def natural(layers=LAYERS, neurons=NEURONS):
    return Layout({}, np.tile(np.arange(neurons, dtype=np.int32), (layers, 1)))


def mixed(seed=0, layers=LAYERS, neurons=NEURONS):
    rng = np.random.default_rng(seed)
    return Layout({}, np.stack([rng.permutation(neurons) for _ in range(layers)]).astype(np.int32))


def run(trace, policy="dip", listener=None, device=None, rule="lru", **chosen):
    made = policy if isinstance(policy, Policy) else POLICIES.make(policy)[1]
    chosen = Settings(**{"dram": "60%", "per_token": True} | chosen)
    return replay(trace, device or flat_profile(), made, EVICTIONS.make(rule)[1], chosen, observers=[Told(listener)])


def counted(result):
    return result.model_dump(exclude={"provenance"})


# ---------------------------------------------------------------------- blocks


@given(data=st.data())
def test_blocks_are_as_lists_of_members(data):
    indices, block = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 20))
    order = data.draw(st.permutations(range(indices)))
    blocks = Blocks(indices, block, np.array(order))
    members = [order[at : at + block] for at in range(0, indices, block)]
    scores = np.array(data.draw(st.lists(st.integers(-9, 9), min_size=indices, max_size=indices)), np.float32)
    assert blocks.sums(scores).tolist() == [scores[part].sum() for part in members]
    assert blocks.sums(scores).dtype == np.float32
    units = np.array(data.draw(st.lists(st.booleans(), min_size=blocks.units, max_size=blocks.units)))
    expanded = blocks.expand(units, np.empty(indices, bool))
    assert set(np.flatnonzero(expanded)) == {
        index for part, taken in zip(members, units, strict=True) if taken for index in part
    }
    np.testing.assert_array_equal(blocks.touched(expanded), units)
    mask = scores > 0
    assert blocks.touched(mask).tolist() == [bool(mask[part].any()) for part in members]


def test_infinite_scores_do_not_make_nan():
    sums = Blocks(4, 2).sums(np.array([np.inf, -np.inf, np.inf, np.inf], np.float32))
    assert sums.tolist() == [0, np.inf]


@pytest.mark.parametrize("block", [1, 5, 7, 48, 120, 10**6])
def test_bytes_of_units_add_up_to_the_matrices(block):
    for plan in plans_of(POLICIES.make("dip")[1], SMALL_MODEL, units=Units(Bits(mlp=4.5), block)):
        members = [min(block, plan.indices - at) for at in range(0, plan.indices, block)]
        slice_elements = plan.parameters // len(plan.slice_bytes)
        whole = [-(-count * slice_elements * 9 // 16) for count in members]  # 4.5 bits = 9/16 of a byte
        assert plan.sizes().tolist() == [len(plan.slice_bytes) * size for size in whole]
        assert plan.total_bytes == plan.sizes().sum()
        assert (plan.units, plan.short) == (len(members), max(members) * len(members) - plan.indices)


# ---------------------------------------------------------------------- what must not change


@pytest.mark.parametrize("policy", ["dip", "dip-ca", "oracle"])
def test_one_is_none(trace, policy):
    masks = [[], []]
    once = run(trace, policy, lambda *a: masks[0].append(a[3].tobytes()))
    with_order = run(trace, policy, lambda *a: masks[1].append(a[3].tobytes()), block=1, layout=mixed())
    assert counted(once) == counted(with_order)
    assert masks[0] == masks[1]


@pytest.mark.parametrize("policy", ["dip", "dip-ca", "oracle"])
def test_the_models_own_order_is_no_layout(trace, policy):
    assert counted(run(trace, policy, block=8)) == counted(run(trace, policy, block=8, layout=natural()))
    assert counted(run(trace, policy, block=8)) != counted(run(trace, policy, block=8, layout=mixed()))


def test_a_block_of_everything_is_dense(trace):
    result = run(trace, "dip", block=120)
    assert result.mlp_density == 1
    assert {group.units for group in result.groups} == {1}
    masks = []
    run(trace, "dip", lambda *a: masks.append(a[3].all()), block=10**8)
    assert all(masks)


# ---------------------------------------------------------------------- masks and bytes


@pytest.mark.parametrize("policy", ["dip", "dip-ca", "oracle"])
@pytest.mark.parametrize("ordered", [False, True])
def test_masks_are_whole_blocks_and_their_bytes_exact(trace, policy, ordered):
    """7 divides neither 48 nor 120: the last units have 6 columns and 1."""
    order = mixed() if ordered else natural()
    asked = {"bytes": 0, "indices": 0, "units": 0}
    plans = layout(
        trace.model, flat_profile(), POLICIES.make(policy)[1], trace.header.longest, Settings(dram="60%", block=7)
    ).plans
    by_name = {(plan.layer, plan.name): plan for plan in plans}

    def listen(layer, group, token, mask):
        plan = by_name[layer, group]
        places = order.orders[layer] if plan.group.axis == "neuron" else np.arange(plan.indices)
        parts = [mask[places[at : at + 7]] for at in range(0, plan.indices, 7)]
        assert all(part.all() or not part.any() for part in parts)
        taken = [len(part) for part in parts if part.all()]
        assert len(taken) == plan.k == max(1, int(plan.group.keep * plan.units + 1e-9))
        asked["units"] += len(taken)
        asked["indices"] += sum(taken) * plan.mlp_parameters
        asked["bytes"] += sum(taken) * plan.parameters // 2  # 4 bits; whole bytes here

    result = run(trace, policy, listen, block=7, layout=order if ordered else None)
    assert result.unit_requests == asked["units"]
    assert sum(group.flash_bytes + group.dram_bytes for group in result.groups) == asked["bytes"]
    whole = result.tokens * LAYERS * SMALL_MODEL.mlp_parameters
    assert result.mlp_density == pytest.approx(asked["indices"] / whole)
    closed = run(trace, policy, block=7, layout=order if ordered else None, timing="closed-form")
    assert result.time_s.total == pytest.approx(closed.time_s.total, rel=1e-9)
    assert sum(token.flash_bytes for token in result.per_token) == result.flash_bytes


class _Spy(Policy):
    """Looks at what it is shown."""

    def groups(self, model):
        return [Group("down", "neuron", ["down.column"], 0.5, ["glu"])]

    def score(self, ctx):
        assert (ctx.units, ctx.k) == (NEURONS, NEURONS // 2)
        assert ctx.cached.shape == (NEURONS,)
        assert not ctx.cached.flags.writeable
        if ctx.token == 0:
            assert not ctx.cached.any()
        else:
            assert (ctx.cached | ~LAST["mask"]).all()  # the mask fits: all of it is cached
        return np.abs(ctx.signals["glu"])


LAST = {}


def test_a_policy_sees_single_indices(trace):
    run(trace, _Spy(), lambda *a: LAST.update(mask=a[3].copy()), block=7, layout=mixed(), dram="99%")
    assert LAST["mask"].sum() in (7 * 9, 7 * 8 + 1)  # 9 of 18 units


class _Chooses(Policy):
    """A mask of its own."""

    keep: float | None = None
    take: int = 3

    def groups(self, model):
        return [Group("down", "neuron", ["down.column"], self.keep, ["glu"])]

    def select(self, ctx):
        return np.arange(ctx.units) < self.take


def test_a_policys_own_mask_becomes_the_blocks_that_it_touches(trace):
    counts = []
    run(trace, _Chooses(take=9), lambda *a: counts.append(int(a[3].sum())), block=8)
    assert set(counts) == {16}
    run(trace, _Chooses(take=60, keep=0.5), lambda *a: counts.append(int(a[3].sum())), block=8)
    assert counts[-1] == 7 * 8  # floor(0.5 x 15 units)
    with pytest.raises(ContractError, match="the mask holds 9 units, keep asks for 60"):
        run(trace, _Chooses(take=9, keep=0.5), block=8)


def test_saved_masks_are_of_indices_and_replay_exactly(trace, tmp_path):
    made, chosen = POLICIES.make("dip")[1], Settings(dram="60%", block=7, layout=mixed())
    writer = MaskWriter(tmp_path / "m.npz")
    whole_run = run_of(trace, flat_profile(), made, EVICTIONS.make("lfu")[1], chosen, policy_name="dip")
    writer.begin(trace.header, whole_run.masking, whole_run.placement)
    whole = replay_run(whole_run, [writer])
    writer.finish()
    masks = MaskFile(tmp_path / "m.npz")
    again = replay_masks(masks, flat_profile(), EVICTIONS.make("lfu")[1], chosen)
    assert counted(again) | {"notes": []} == counted(whole) | {"notes": []}
    single = replay_masks(masks, flat_profile(), EVICTIONS.make("lfu")[1], Settings(dram="60%"))
    assert single.mlp_density == whole.mlp_density  # the same weights, column by column
    assert single.unit_requests > whole.unit_requests


# ---------------------------------------------------------------------- Flash


def with_flash(**fields):
    known = {"name": "d", "dram": {"budget": "1 GB", "bandwidth": "50 GB/s"}}
    return Profile.model_validate(known | {"flash": {"read_bandwidth": "1 GB/s"} | fields})


def test_a_block_is_one_larger_read_of_each_slice(trace):
    """Pages of 64 B: a unit of n columns is read in pages of its own bytes, the smaller last one too."""
    device = with_flash(page_size="64 B")
    result = run(trace, _Chooses(take=NEURONS), device=device, block=7, rule="none", dram="100%")
    times = result.tokens * LAYERS  # everything is asked for: 17 units of 7 columns of 24 B, and one of 1
    assert sum(group.requests for group in result.groups) == times * 18
    assert result.flash_bytes == times * (17 * 168 + 24) == times * NEURONS * 24
    assert result.flash_read_bytes == times * (17 * 192 + 64)  # 168 B are 3 pages, 24 B are 1


def test_the_smaller_last_unit_is_a_read_of_its_own():
    seconds = flash_seconds(flat_profile().flash)
    assert seconds(3, (100, 50), (40, 20)) == pytest.approx((2 * 150 + 60) / 1e9)
    assert seconds(1, (100,), (40,)) == pytest.approx(40 / 1e9)
    assert seconds(3, (100, 50)) == pytest.approx(450 / 1e9)
    table = {"queue_depth": [1], "unit": "MB/s", "read": {"4 KiB": [100], "64 KiB": [1000]}}
    measured = flash_seconds(with_flash(queue_depth=1, table=table).flash)
    assert measured(1, (65536,)) == pytest.approx(65536 / 1e9)
    assert measured(16, (4096,)) == pytest.approx(65536 / 1e8)  # the same bytes in small reads: ten times as long
    assert measured(2, (65536,), (4096,)) == pytest.approx(65536 / 1e9 + 4096 / 1e8)


def test_counts_join():
    policy = POLICIES.make("dip")[1]
    plans = plans_of(policy, SMALL_MODEL, units=Units(block=7))
    parts = [Counts.none(tokens, plans) for tokens in (2, 3)]
    assert Counts.joined(parts).last_hits.shape == (5, 3, 2)
    assert Counts.joined([Counts.none(1, plans_of(policy, SMALL_MODEL))]).last_hits is None


# ---------------------------------------------------------------------- layouts


def plain_chain(active):
    """The greedy chain with loops; active: bool [tokens, neurons]."""
    neurons = active.shape[1]

    def together(a, b):
        return int((active[:, a] & active[:, b]).sum())

    order = [max(range(neurons), key=lambda n: (together(n, n), -n))]
    while len(order) < neurons:
        left = [n for n in range(neurons) if n not in order]
        order.append(max(left, key=lambda n: (sum(together(n, r) for r in order[-8:]), -n)))
    return order


@given(data=st.data())
def test_the_chain_is_as_its_plain_twin(data):
    tokens, neurons = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 14))
    active = np.random.default_rng(data.draw(st.integers(0, 10**6))).random((tokens, neurons)) < 0.5
    assert chain(pack(active)).tolist() == plain_chain(active)


def test_bits_are_counted_without_numpy_2_too(rng):
    active = rng.random((130, 9)) < 0.3
    words = pack(active)
    assert words.shape == (3, 9)
    for count in (_ones, _looked_up):
        assert count(words).tolist() == active.sum(axis=0).tolist()


def test_neurons_that_are_active_together_become_neighbours(tmp_path):
    """Six clubs of neurons, scattered; each token wakes three of them."""
    rng = np.random.default_rng(1)
    club = rng.permutation(np.arange(120) % 6)
    awake = np.stack([np.isin(club, rng.choice(6, 3, replace=False)) for _ in range(90)])
    order = chain(pack(awake))
    assert np.count_nonzero(np.diff(club[order])) == 5


def test_a_layout_is_deterministic_and_leaves_prompts_out(tmp_path):
    path = write_trace(tmp_path / "t.npz")
    with Trace(path) as trace:
        for name in ("a.npz", "b.npz"):
            made, told = order_trace(trace)
            write_layout(tmp_path / name, made)
        assert told.tokens == trace.header.decoded == 59
        assert told.before < told.after <= 1
        assert made.header["trace"] == trace.hash
        for layer in range(3):
            glu = np.concatenate([trace.read(layer, "glu", 6, 40), trace.read(layer, "glu", 40, 65)])
            active = np.zeros(glu.shape, bool)
            for row, into in zip(np.abs(glu), active, strict=True):
                into[np.argsort(-row, kind="stable")[:60]] = True
            np.testing.assert_array_equal(made.orders[layer], chain(pack(active)))
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    read = read_layout(tmp_path / "a.npz")
    np.testing.assert_array_equal(read.orders, made.orders)
    assert read.digest == made.digest


def test_a_trace_without_glu_is_refused(tmp_path):
    with (
        Trace(write_trace(tmp_path / "t.npz", sequences=[Sequence(tokens=4)], signals=("input",))) as trace,
        pytest.raises(TraceError, match=r"lacks glu.*hwsim record --model small --signals glu"),
    ):
        order_trace(trace)


def test_another_models_layout_is_refused(trace):
    other = Layout({"model": {"name": "big"}}, mixed(neurons=60).orders)
    with pytest.raises(SettingError, match="made for big with 3 layers of 60 neurons; small has 3 of 120"):
        run(trace, block=4, layout=other)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "must hold layers/000/neuron"),
        ({"layers/001/neuron": np.arange(4)}, "must hold layers/000/neuron"),
        ({"layers/000/neuron": np.zeros(4, np.int32)}, "must name each neuron from 0 to 3 once"),
        ({"layers/000/neuron": np.arange(4).astype(np.float32)}, "needs whole numbers"),
        ({"layers/000/neuron": np.arange(4), "layers/001/neuron": np.arange(5)}, r"layers/001/neuron is int64 \(5,\)"),
    ],
)
def test_files_that_are_no_layout(arrays, message, tmp_path):
    write_arrays(tmp_path / "l.npz", KIND, {}, arrays)
    with pytest.raises(PluginError, match=message):
        read_layout(tmp_path / "l.npz")


def test_commands(hwsim, small_trace, tmp_path):
    made = hwsim("layout", small_trace, "-o", "n.npz")
    assert made.returncode == 0, made.stderr
    assert "n.npz: 120 neurons in each of 3 layers, from 59 tokens" in made.stdout
    again = hwsim("layout", small_trace, "-o", "n.npz")
    assert (again.returncode, again.stderr.strip()) == (
        1, "hwsim: n.npz: exists; name another file with -o, or give --overwrite"
    )  # fmt: skip
    options = ["--policy", "dip", "--dram", "60%", "--block", "4", "--layout", "n.npz", "--cache-scope", "layer"]
    (tmp_path / "d.yaml").write_text(
        "name: d\nsource: none\ndram: {budget: 1 GB, bandwidth: 50 GB/s}\nflash: {read_bandwidth: 1 GB/s}\n"
    )
    told = hwsim("replay", small_trace, "--hw", "d.yaml", *options, "--cache-shares", "traffic", "--json", "r.json")
    assert told.returncode == 0, told.stderr
    assert '"block": 4' in (tmp_path / "r.json").read_text()
    spared = hwsim("replay", small_trace, "--hw", "d.yaml", *options, "--json", "n.npz")
    assert spared.returncode == 1
    assert "n.npz" in spared.stderr
    wrong = hwsim("replay", "sample", "--hw", "d.yaml", *options)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (1, 1)
    assert "was made for small with 3 layers of 120 neurons" in wrong.stderr
