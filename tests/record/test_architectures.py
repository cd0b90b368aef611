"""Every architecture against transformers itself: what is counted, recorded and masked, and the losses.

The expected values come from hooks of this file, which know from the source of transformers where a model keeps its
MLPs, and from plain forward passes; what is counted is held against the parameters that get a gradient.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

pytest.importorskip("torch", reason="recording needs the extra `record`")
pytest.importorskip("transformers", reason="recording needs the extra `record`")

import torch

from hwsim.closed_loop.masking import ClosedLoop
from hwsim.errors import ModelError
from hwsim.memory.kv_cache import KVCache
from hwsim.model.shape import Bits, ModelShape
from hwsim.model.stored import layer_elements, outer_elements
from hwsim.policy import Context, Group, Policy
from hwsim.record import Settings, record
from hwsim.record.extras import Libraries, libraries
from hwsim.record.hooks import layers_of
from hwsim.record.inventory import Inventory
from hwsim.record.loading import read_structure, structure_of
from hwsim.record.runner import Runner, kv_argument
from hwsim.record.sources import find_source
from hwsim.record.stored import find_stored
from hwsim.simulation.plugins import POLICIES
from hwsim.simulation.settings import Settings as SimulationSettings
from hwsim.trace import Sequence, Trace
from tests.closed_loop.loops import masking_of
from tests.record.architectures import CONFIGS, REFUSED, VOCABULARY, make_architecture, make_config, where
from tests.record.conftest import make_tokenizer
from tests.record.expected import activated, has, hooked, losses_of, signals_of, top
from tests.record.mixtures import MIXTURES
from tests.record.models_page import PAGE, refusal, row
from tests.record.test_signals import assert_same

TOKENS = 21  # beyond the windows of 8 and 16 tokens
KEEP_INPUT = 1 / (1 + np.exp(-0.2997647759))  # DIP's split at density 0.5


class Made(NamedTuple):
    """A model on disk and in memory, its inventory, and a text."""

    folder: Path
    model: Any
    inventory: Inventory
    ids: np.ndarray  # [1, tokens]


_PARENT: list[Path] = []


@pytest.fixture(scope="module", autouse=True)
def _parent(tmp_path_factory: pytest.TempPathFactory) -> None:
    _PARENT.append(tmp_path_factory.mktemp("architectures"))


@lru_cache(maxsize=2)
def made(name: str) -> Made:
    folder = _PARENT[-1] / name
    make_architecture(name).save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    structure = read_structure(find_source(str(folder)), libraries())
    model = structure.loader.from_pretrained(folder, dtype=torch.float32).eval()
    ids = np.random.default_rng(3).integers(2, VOCABULARY, (1, TOKENS))
    return Made(folder, model, structure.inventory, ids)


@pytest.fixture(params=CONFIGS, scope="module")  # so that all tests of one architecture come together
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# ---------------------------------------------------------------------- the tests


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_counted_is_refused_in_one_line(kind: str) -> None:
    with pytest.raises(ModelError, match=REFUSED[kind][0]) as refusal:
        structure_of(make_config(kind), kind, libraries())
    assert "; " in str(refusal.value)  # the reason, and the way out
    assert "\n" not in str(refusal.value)


def test_the_page_of_models_is_made_of_these(architecture: str) -> None:
    assert row(architecture, made(architecture).inventory, made(architecture).model) in PAGE.read_text().splitlines()


def test_the_page_of_models_names_no_other() -> None:
    lines = PAGE.read_text().splitlines()
    assert len([line for line in lines if line.startswith("| `")]) == len(CONFIGS) + len(MIXTURES) + len(REFUSED)
    assert all(refusal(kind) in lines for kind in REFUSED)


def test_what_is_counted_is_what_a_token_reads(architecture: str) -> None:
    """The matrices with a gradient, but tables of which a token reads a row; every other parameter is named."""
    _, model, inventory, ids = made(architecture)
    shape = inventory.shape
    model.requires_grad_(True)
    model(input_ids=torch.as_tensor(ids).long(), use_cache=False).logits.float().square().mean().backward()
    head = model.get_output_embeddings().weight
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)} - {id(head)}
    read = [
        parameter.numel() for parameter in model.parameters()
        if parameter.grad is not None and parameter.ndim > 1 and id(parameter) not in tables
    ]  # fmt: skip
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    layers = range(shape.num_hidden_layers)
    counted = shape.all_mlp_parameters + sum(map(shape.attention_parameters, layers))
    assert counted + shape.head_parameters + shape.outside_parameters == sum(read)
    assert sum(read) + sum(inventory.uncounted.values()) == sum(p.numel() for p in model.parameters())
    place = where(architecture)
    for number, layer in enumerate(model.get_submodule(place.layers)):
        matrices = [layer.get_submodule(n).weight.numel() for n in (place.gate, place.up, place.down)
                    if n and has(layer, n)]  # fmt: skip
        used = sum(matrices) if shape.by_layer[number].intermediate_size else 0
        assert used == len(shape.mlp) * shape.hidden_size * shape.by_layer[number].intermediate_size
    assert any(layer.intermediate_size for layer in shape.by_layer)


def test_kv_entries_are_those_of_the_cache(architecture: str) -> None:
    """At 8 bits a byte for each number; a window of transformers' cache leaves room for the token that comes."""
    _, model, inventory, ids = made(architecture)
    with torch.no_grad():
        cache = model(input_ids=torch.as_tensor(ids), use_cache=True)[kv_argument(model)]
    kv = KVCache.of(inventory.shape, Bits())
    entries = kv.lengths(np.array([TOKENS]))[0]
    expected = states = 0
    for number, layer in enumerate(cache.layers):
        if isinstance(getattr(layer, "keys", None), torch.Tensor) and layer.keys.ndim == 4:
            held = layer.keys.shape[-2]
            window = kv.windows[number]
            assert held == (entries[number] if window is None or window > TOKENS else entries[number] - 1)
            each = (layer.keys.numel() + layer.values.numel()) // held
            assert kv.stored[number] == each
            expected += each * entries[number]
        else:
            assert kv.stored[number] == 0
        for state in (*getattr(layer, "conv_states", {}).values(), *getattr(layer, "recurrent_states", {}).values()):
            states += 0 if state is None else state.numel()
    assert kv.reserved(TOKENS) == expected
    assert kv.state == 2 * states  # 16 bits
    shared = [layer.kv_from for layer in inventory.shape.by_layer if layer.kv_from is not None]
    assert all(kv.read[number] == kv.stored[source] for number, source in
               enumerate(layer.kv_from for layer in inventory.shape.by_layer) if source is not None)  # fmt: skip
    assert len(shared) == (2 if architecture in ("gemma3n_text", "gemma4_text") else 0)


@pytest.mark.parametrize("name", ["llama", "mistral", "gemma2", "gemma3_text", "cohere2", "olmo3", "qwen2-window"])
def test_reserved_entries_are_those_of_a_cache_of_fixed_size(name: str) -> None:
    """transformers' static cache holds as many entries of a window as the window has."""
    from transformers import StaticCache

    _, model, inventory, ids = made(name)
    cache = StaticCache(model.config.get_text_config(), max_cache_len=TOKENS)
    with torch.no_grad():
        model(input_ids=torch.as_tensor(ids), **{kv_argument(model): cache}, use_cache=True)
    numbers = sum(layer.keys.numel() + layer.values.numel() for layer in cache.layers)
    assert KVCache.of(inventory.shape, Bits()).reserved(TOKENS) == numbers


def test_recorded_signals_and_losses_are_the_models_own(architecture: str, tmp_path: Path) -> None:
    """By the files on disk, from the configuration to the trace."""
    folder, model, inventory, _ = made(architecture)
    shape = inventory.shape
    record(tmp_path / "t.npz", str(folder), "persuasion", Settings(TOKENS, TOKENS))
    with Trace(tmp_path / "t.npz") as trace:
        ids = trace.tokens()
        assert ids is not None
        expected = signals_of(model, where(architecture), ids[None])
        for signal in trace.header.signals:
            for layer in shape.layers_with(signal):
                assert_same(trace.read(layer, signal), expected[layer, signal], f"layer {layer}, {signal}")
        assert {signal for _, signal in expected} - set(trace.header.signals) <= {"glu", "up"}
        nll = trace.nll()
        assert nll is not None
        np.testing.assert_allclose(nll[1:], losses_of(model, ids[None]), rtol=2e-3, atol=2e-4)
        assert trace.model == shape


class Rows(Policy):
    """Rows of up and columns of down by the largest activated gates; without a gate, by a fixed order."""

    gated: bool

    def groups(self, model: ModelShape) -> list[Group]:
        needs = ["gate"] if self.gated else []
        return [Group("rows", axis="neuron", slices=["up.row", "down.column"], keep=0.5, needs=needs)]

    def score(self, ctx: Context) -> np.ndarray:
        return np.abs(ctx.signals["gate"]) if self.gated else fixed_order(ctx.units, ctx.layer)


def fixed_order(units: int, layer: int) -> np.ndarray:
    """A score for each unit that no two share."""
    return np.random.default_rng(layer).permutation(units).astype(np.float32)


def closed_loop(made_: Made, policy: Policy | None = None, **parameters: Any) -> tuple[Runner, ClosedLoop]:
    policy = policy or POLICIES.make("dip", parameters)[1]
    masking = masking_of(policy, made_.inventory.shape, TOKENS, SimulationSettings(dram="60%"))
    used = libraries()
    layers = layers_of(made_.model, made_.inventory)
    return Runner(made_.model, Libraries(used.torch, used.transformers)), ClosedLoop(layers, masking)


def masked_losses(made_: Made, policy: Policy | None = None, **parameters: Any) -> np.ndarray:
    """Losses in the closed loop under a policy, or DIP."""
    runner, loop = closed_loop(made_, policy, **parameters)
    try:
        runner.hidden(made_.ids)  # as an evaluation: a dense pass comes first
        loop.window([Sequence(tokens=TOKENS)], 0)
        with loop:
            return runner.losses(made_.ids)[0, 1:]
    finally:
        runner.remove()


def test_all_columns_are_the_dense_model(architecture: str) -> None:
    found = masked_losses(made(architecture), density=1.0)
    np.testing.assert_allclose(found, losses_of(made(architecture).model, made(architecture).ids), rtol=1e-4, atol=1e-5)


def test_half_of_the_columns_are_a_plain_masked_pass(architecture: str) -> None:
    _, model, inventory, ids = made(architecture)
    shape, place = inventory.shape, where(architecture)
    down = (len(shape.mlp) * 0.5 - (len(shape.mlp) - 1) * KEEP_INPUT) if shape.gated else 2 * 0.5 - KEEP_INPUT

    def mask(layer: int, point: str, value: Any) -> Any:
        if point in ("up", "gate"):
            return None
        return top(value, int((KEEP_INPUT if point == "input" else down) * value.shape[-1] + 1e-9))

    with hooked(model, place, mask):
        expected = losses_of(model, ids)
    found = masked_losses(made(architecture), density=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - losses_of(model, ids)).max() > 1e-3  # the masks do something


def test_half_of_the_rows_are_a_pass_that_skips_them(architecture: str) -> None:
    """A norm between the product of gate and up and down sees the zeros of the rows that are skipped."""
    _, model, inventory, ids = made(architecture)
    shape, place = inventory.shape, where(architecture)
    layers, masks = model.get_submodule(place.layers), {}

    def skip(layer: int, point: str, value: Any) -> Any:
        units = shape.by_layer[layer].intermediate_size
        if point == "input" or not units:
            return None
        if point == "gate" or (point == "up" and place.half):
            raw = value.chunk(2, -1)[0] if place.half else value
            chosen = activated(place.act, raw, layers[layer]).abs().topk(units // 2, dim=-1).indices
            masks[layer] = torch.zeros_like(raw).scatter(-1, chosen, 1.0)
        elif not shape.gated and point == "up":
            order = torch.as_tensor(fixed_order(units, layer))
            masks[layer] = (order >= order.sort().values[-(units // 2)]).float()
        if point == "up" and layer not in masks:  # up comes first: its rows are skipped where the product is
            return None
        if point == "up" and shape.gated:
            return torch.cat([raw, value.chunk(2, -1)[1] * masks[layer]], -1) if place.half else value * masks[layer]
        return value * masks[layer] if point == "glu" else None

    with hooked(model, place, skip):
        expected = losses_of(model, ids)
    found = masked_losses(made(architecture), Rows(gated=shape.gated))
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
    assert np.abs(expected - losses_of(model, ids)).max() > 1e-3


def test_token_by_token_is_the_whole_window(architecture: str) -> None:
    """With the KV cache or the fixed states that transformers keeps."""
    prepared = made(architecture)
    runner, loop = closed_loop(prepared, density=0.5)
    try:
        loop.window([Sequence(tokens=TOKENS)], 0)
        with loop:
            whole = runner.hidden(prepared.ids)
        requests = loop.counts().hits.sum(axis=0)
        runner.remove()
        runner, loop = closed_loop(prepared, density=0.5)
        loop.begin(0)
        hits = np.zeros_like(requests)

        @contextmanager
        def step() -> Iterator[None]:
            loop.continued(1)
            with loop:
                yield
            hits[...] += loop.counts().hits.sum(axis=0)

        stepped = runner.in_pieces(prepared.ids[0], ((1, step()) for _ in range(TOKENS)))
    finally:
        runner.remove()
    np.testing.assert_allclose(stepped.numpy(), whole.numpy(), rtol=5e-3, atol=5e-3 * float(whole.abs().max()))
    assert np.array_equal(hits, requests)


def test_stored_bytes_are_those_of_the_counted_matrices(architecture: str) -> None:
    """A folder in float32: 4 bytes for each weight that is counted, matrix by matrix; a row is counted, not its table."""
    source = find_source(str(made(architecture).folder))
    structure = read_structure(source, libraries())
    shape = structure.shape
    stored, why = find_stored(source, structure, libraries())
    assert not why and stored is not None
    for number, sizes in enumerate(stored.layers):
        assert sizes == {name: 4 * count for name, count in layer_elements(shape, number).items()}
    for name, count in outer_elements(shape).items():
        assert getattr(stored, name) == 4 * count, name
