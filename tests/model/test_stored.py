"""Stored bytes of a model's matrices: what they must name, and the bits, units and totals that follow, by hand."""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from hwsim.errors import ModelError, SettingError, TraceError
from hwsim.masking.mask_file import MaskFile, MaskWriter
from hwsim.memory.planning import Units, plan_layers
from hwsim.model.layers import LayerShape
from hwsim.model.shape import Bits, footprint, stored_bytes
from hwsim.model.stored import StoredBytes, bits_of
from hwsim.simulation.plugins import EVICTIONS
from hwsim.simulation.run import Conditions, Source
from hwsim.simulation.settings import Settings, read_bits
from hwsim.trace import FLOAT16, Trace, TraceHeader, TraceWriter
from hwsim.trace.convert import convert
from hwsim.trace.encoding import Encoding
from tests.runs import replay, replay_masks
from tests.toy import THREE, TOY, Scripted, device_of

# Weights of a layer of the toy: q 16, k 8, v 8, o 16, gate 32, up 32, down 32; the LM head has 64. A unit of `input` is a
# column of gate and one of up, 8 weights each; a unit of `down` is a column of 4 weights.
LAYERS = (
    {"q": 20, "k": 10, "v": 9, "o": 17, "gate": 32, "up": 24, "down": 36},
    {"q": 16, "k": 8, "v": 8, "o": 16, "gate": 33, "up": 20, "down": 30},
)
STORED = StoredBytes(layers=LAYERS, lm_head=70)
RESIDENT = 56 + 48 + 70
UNITS = {("input", 0): 8 + 6, ("down", 0): 5, ("input", 1): 9 + 5, ("down", 1): 4}  # ceil(33/4), ceil(36/8), ceil(30/8)


def written(path, stored=STORED, model=TOY, **changes):
    fields = {"origin": "recorded", "model": model, "signals": ["input"], "sequences": list(THREE), "stored": stored}
    header = TraceHeader(**(fields | changes))
    with TraceWriter(path, header) as writer:
        for layer in range(model.num_hidden_layers):
            writer.write(layer, "input", 0, np.zeros((header.tokens, model.hidden_size), np.float32))
        writer.commit(header.tokens)
        writer.finish()
    return path


def replayed(path, bits="stored", dram: Any = 10_000, **more):
    with Trace(path) as trace:
        settings = Settings(bits=bits, dram=dram, **more)
        return replay(trace, device_of({}), Scripted(), EVICTIONS.make("lru")[1], settings)


def test_bits_are_those_of_each_matrix() -> None:
    bits = bits_of(read_bits("stored"), TOY, STORED)
    assert bits.of("q", 0) == 10 and bits.of("q", 1) == 8
    assert bits.of("gate", 1) == Fraction(33, 4) and bits.of("lm_head") == Fraction(35, 4)
    assert bits.model_dump() == {
        "mlp": 8 * 175 / 192, "attention": 8 * 104 / 96, "lm_head": 8.75, "kv_cache": 8.0, "predictor": 4.0,
        "adapter": 16.0, "stored": True,
    }  # fmt: skip
    assert footprint(TOY, bits) == (104, 70, 175)


def test_a_part_that_is_given_has_its_own_bits() -> None:
    bits = bits_of(read_bits("stored,mlp=4,kv_cache=16"), TOY, STORED)
    assert bits.of("gate", 1) == 4 and bits.of("q", 0) == 10
    assert bits.model_dump() | {"attention": 0} == {
        "mlp": 4.0, "attention": 0, "lm_head": 8.75, "kv_cache": 16.0, "predictor": 4.0, "adapter": 16.0,
        "stored": True, "given": ["mlp"],
    }  # fmt: skip
    assert footprint(TOY, bits) == (104, 70, 96)
    assert footprint(TOY, bits_of(read_bits("stored,attention=4,lm_head=2"), TOY, STORED)) == (48, 16, 175)


def test_units_differ_between_layers() -> None:
    bits = bits_of(Bits(stored=True), TOY, STORED)
    plans = plan_layers([Scripted().groups(TOY)], TOY, Units(bits))
    assert {(plan.name, plan.layer): plan.unit_bytes for plan in plans} == UNITS
    assert {plan.bits for plan in plans} == {8 * 175 / 192}  # the rate of arithmetic is that of the mean
    pairs = plan_layers([Scripted().groups(TOY)], TOY, Units(bits, block=3))
    down = [plan for plan in pairs if plan.name == "down"]
    assert [plan.sizes().tolist() for plan in down] == [[14, 14, 9], [12, 12, 8]]  # ceil(12 x 9/8), ceil(8 x 9/8) ...


def test_bytes_of_a_replay(tmp_path) -> None:
    """All units fit: each is read from Flash once; of the others, 3 of `input` and 2 of `down`, all are hits."""
    result = replayed(written(tmp_path / "t.npz"))
    assert result.flash_bytes == 3 * 14 + 4 * 5 + 3 * 14 + 4 * 4
    assert result.resident_bytes == RESIDENT + 3 * 8
    kv = (1 + 2 + 3) * 8
    assert result.dram_bytes == 3 * 14 + 2 * 5 + 3 * 14 + 2 * 4 + 3 * RESIDENT + kv
    assert result.provenance["settings"]["bits"]["stored"] is True
    half = replayed(written(tmp_path / "h.npz"), dram="50%")
    assert half.budget_bytes == (104 + 70 + 175) // 2 + 3 * 8
    assert half.streamed_bytes == 0 and half.cache_bytes == 0  # 174 of 174.5 bytes are resident


def test_other_matrices_and_rows(tmp_path) -> None:
    """A layer without q, k, v and o, a matrix outside the layers, and rows that are looked up."""
    plain = {"attention": "linear", "state_elements": 3, "other_parameters": 10, "intermediate_size": 8}
    model = TOY.model_copy(
        update={"layers": (LayerShape(**plain), TOY.by_layer[1]), "outside_parameters": 12, "embedding_row": 6}
    )
    mlp = {"gate": 32, "up": 24, "down": 36}
    stored = StoredBytes(layers=({"other": 15, **mlp}, LAYERS[1]), lm_head=70, outside=18, embedding_row=9)
    result = replayed(written(tmp_path / "t.npz", stored, model))
    assert result.looked_up_bytes == 9
    assert result.resident_bytes == 15 + 48 + 70 + 18 + 3 * 4 + 2 * 3  # KV entries of one layer, and the state
    assert stored.weights == 15 + 92 + 131 + 70 + 18


def test_all_matrices_alike_give_what_numbers_of_bits_give(tmp_path) -> None:
    elements = {"q": 16, "k": 8, "v": 8, "o": 16, "gate": 32, "up": 32, "down": 32}
    double = {name: 2 * count for name, count in elements.items()}
    path = written(tmp_path / "t.npz", StoredBytes(layers=(double, double), lm_head=128))
    for more in ({}, {"dram": "70%"}, {"dram": "70%", "block": 3}, {"dram": "80%", "cache_scope": "global"}):
        exact, plain = replayed(path, **more), replayed(path, "mlp=16,attention=16,lm_head=16", **more)
        assert exact.provenance["settings"]["bits"].pop("stored")
        assert exact == plain


def test_the_header_keeps_them(tmp_path) -> None:
    path = written(tmp_path / "t.npz")
    with Trace(path) as trace:
        assert trace.header.stored == STORED
        convert(trace, tmp_path / "c.npz", Encoding(name="int8"))
    with Trace(tmp_path / "c.npz") as trace:
        assert trace.header.stored == STORED and trace.header.encoding != FLOAT16
    with Trace(written(tmp_path / "none.npz", None)) as trace:
        assert "stored" not in str(trace.header.to_array())


def test_saved_masks_keep_them(tmp_path) -> None:
    header = TraceHeader(origin="recorded", model=TOY, signals=["input"], sequences=list(THREE), stored=STORED)
    eviction = EVICTIONS.make("lru")[1]
    run = Conditions(device_of({}), eviction, Settings(bits="stored", dram=10_000)).run(Source(header, {}), Scripted())
    writer = MaskWriter(tmp_path / "m.npz")
    writer.begin(header, run.masking, run.placement)
    writer.finish()
    masks = MaskFile(tmp_path / "m.npz")
    assert masks.stored == STORED
    result = replay_masks(masks, device_of({}), eviction, Settings(bits="stored", dram=10_000))
    assert result.resident_bytes == RESIDENT + 3 * 8


@pytest.mark.parametrize(
    ("stored", "rule"),
    [
        ({"layers": LAYERS[:1], "lm_head": 70}, "stored.layers has 1 entries, the model has 2 layers"),
        ({"layers": ({"q": 1}, LAYERS[1]), "lm_head": 70}, "stored.layers.0 names q, the model's layer has q, k, v, o"),
        ({"layers": (LAYERS[0] | {"q": 0}, LAYERS[1]), "lm_head": 70}, "stored.layers.0.q is 0 bytes for 16 weights"),
        ({"layers": (LAYERS[0] | {"other": 5}, LAYERS[1]), "lm_head": 70}, "they differ in other"),
        ({"layers": LAYERS, "lm_head": 64 * 8 + 1}, "stored.lm_head is 513 bytes for 64 weights"),
        ({"layers": LAYERS, "lm_head": 70, "outside": 3}, "stored.outside is 3 bytes for 0 weights"),
    ],
)
def test_impossible_bytes_are_refused(stored, rule) -> None:
    with pytest.raises(ValueError, match=rule):
        TraceHeader(
            origin="recorded", model=TOY, signals=["input"], sequences=list(THREE), stored=StoredBytes(**stored)
        )


def test_a_damaged_file_of_masks_is_refused(tmp_path) -> None:
    header = TraceHeader(origin="recorded", model=TOY, signals=["input"], sequences=list(THREE), stored=STORED)
    run = Conditions(device_of({}), EVICTIONS.make("lru")[1], Settings(dram=10_000)).run(Source(header, {}), Scripted())
    writer = MaskWriter(tmp_path / "m.npz")
    wrong = header.model_copy(update={"stored": StoredBytes(layers=LAYERS[:1], lm_head=70)})
    writer.begin(wrong, run.masking, run.placement)
    writer.finish()
    with pytest.raises(TraceError, match=r"m\.npz: is no file of masks, or is damaged: stored.layers has 1 entries"):
        MaskFile(tmp_path / "m.npz")


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "it does not state the stored bytes of its weights; record it again with --overwrite .*, or give"),
        ({"origin": "synthetic"}, "it is synthetic, and no weights are stored for it; give numbers, such as --bits"),
        ({"provenance": {"stored_unknown": "odd tensors"}}, "the stored bytes of its weights are unknown: odd tensors"),
    ],
)
def test_a_trace_without_them_is_refused(tmp_path, changes, line) -> None:
    path = written(tmp_path / "t.npz", None, **changes)
    with pytest.raises(SettingError, match=f"^--bits stored: t.npz: {line}"):
        replayed(path)
    assert replayed(path, "mlp=4").tokens == 3


def test_bits_without_a_model_are_refused() -> None:
    with pytest.raises(ModelError, match="needs the stored bytes"):
        footprint(TOY, Bits(stored=True))
    with pytest.raises(ModelError, match="nothing says how the weights of toy are stored"):
        bits_of(Bits(stored=True), TOY, None)


def test_what_is_given_is_read_back() -> None:
    bits = read_bits("stored, attention=8")
    assert bits.model_dump() == {
        "attention": 8.0, "kv_cache": 8.0, "predictor": 4.0, "adapter": 16.0, "stored": True,
    }  # fmt: skip
    assert Bits.model_validate(bits.model_dump()).model_dump() == bits.model_dump()
    with pytest.raises(SettingError, match=r"^--bits stored=4: write stored alone"):
        read_bits("stored=4")


def test_bits_that_no_decimal_has() -> None:
    """bytes x 8 / weights is kept as a fraction: the bytes of the whole matrix come back, whatever its size."""
    for elements in (7, 1_000_003, 128 * 10**6 + 1):
        for size in (elements // 2 + 1, elements * 3 // 5, elements):
            assert stored_bytes(elements, Fraction(8 * size, elements)) == size
