"""Placement: resident weights are put into DRAM first, in a fixed order, then the caches; the rest is streamed.

All sizes are whole numbers of bytes; docs/explanation/model.md explains the rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from hwsim.errors import SettingError, UnitError
from hwsim.memory.groups import Plans
from hwsim.memory.kv_cache import KVCache
from hwsim.memory.shares import Scope, Shared, Shares, divide
from hwsim.model.lora import Adapter
from hwsim.model.shape import ATTENTION, MLP, Bits, ModelShape, footprint, shared_bytes, stored_bytes
from hwsim.util.units import parse, show_size

_LARGEST = 10**18  # bytes of a DRAM budget: more is a typing error


@dataclass(frozen=True)
class Unmasked:
    """Bytes of the weights that no mask cuts.

    Attributes:
        attention: bytes of each layer's attention.
        mlp: bytes of each layer's MLP.
        kept: bytes of the policy's own parameters and the adapter in each layer.
        lm_head: bytes of the LM head.
    """

    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    kept: tuple[int, ...]
    lm_head: int

    @property
    def total(self) -> int:
        """Bytes of all layers and the LM head."""
        return sum(self.attention) + sum(self.mlp) + sum(self.kept) + self.lm_head

    def in_order(self) -> Iterator[tuple[int, int]]:
        """(step, bytes) in the order in which weights are pinned: attention, LM head, `kept`, MLP."""
        yield from enumerate(self.attention)
        yield len(self.attention), self.lm_head
        yield from enumerate(self.kept)
        yield from enumerate(self.mlp)


@dataclass(frozen=True)
class Bytes:
    """Where a model's bytes lie.

    Attributes:
        budget: DRAM that the model may use.
        kv_tokens: tokens that the KV cache is reserved for.
        sequences: sequences that it is reserved for.
        kv: the KV cache and fixed states of the layers, of one sequence.
        unmasked: weights that no mask cuts, pinned or streamed.
        looked_up: rows of embedding tables that each token reads from Flash.
        sparse: all matrices that masks cut.
        weights: all weights of the model.
    """

    budget: int
    kv_tokens: int
    sequences: int
    kv: KVCache
    unmasked: Unmasked
    looked_up: int
    sparse: int
    weights: int

    @property
    def kv_reserved(self) -> int:
        """KV cache of `kv_tokens` tokens of each sequence."""
        return self.sequences * self.kv.reserved(self.kv_tokens)

    @property
    def states(self) -> int:
        """Fixed states of all sequences."""
        return self.sequences * self.kv.state

    @property
    def reserved(self) -> int:
        """KV cache of `kv_tokens` tokens, and the fixed states."""
        return self.kv_reserved + self.states

    @property
    def resident(self) -> int:
        """Weights that no mask cuts."""
        return self.unmasked.total

    @property
    def streamed(self) -> int:
        """Resident weights that do not fit and are read from Flash at every token."""
        return max(0, self.reserved + self.resident - self.budget)

    @property
    def pinned(self) -> int:
        """Resident weights that lie in DRAM and are read from there at every token."""
        return self.resident - self.streamed

    @property
    def cache(self) -> int:
        """Bytes of the budget that are left for the caches."""
        return max(0, self.budget - self.reserved - self.resident)

    @property
    def enough(self) -> bool:
        """Whether the budget is as large as KV cache, states and all weights; single caches may still be too small."""
        return self.reserved + self.resident + self.sparse <= self.budget

    def by_step(self) -> tuple[list[int], list[int]]:
        """Bytes of unmasked weights by step, each layer and then the LM head: (pinned, streamed)."""
        steps = len(self.kv.stored) + 1
        pinned, streamed, room = [0] * steps, [0] * steps, self.pinned
        for step, size in self.unmasked.in_order():
            fits = min(size, room)
            pinned[step] += fits
            streamed[step] += size - fits
            room -= fits
        return pinned, streamed


@dataclass(frozen=True)
class Parameters:
    """Weights that a token multiplies outside the groups; numbers, not bytes.

    Attributes:
        total: weights that a dense token multiplies, including masked ones; of experts those that the router chooses.
        attention: unmasked weights of each layer's attention.
        mlp: unmasked weights of each layer's MLP.
        lm_head: weights of the LM head and other matrices outside the layers.
        predictor: parameters of the policy itself in all layers.
    """

    total: int
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    lm_head: int
    predictor: int


@dataclass(frozen=True)
class Placement:
    """Where a model lies under one policy and one DRAM budget, and its arithmetic.

    Attributes:
        bytes: where the model's bytes lie.
        parameters: weights that a token multiplies outside the groups.
        plans: the policy's groups with the capacities of their caches.
        shared: the shared caches; None if each group has its own.
        adapter: LoRA adapter of the model, or None.
    """

    bytes: Bytes
    parameters: Parameters
    plans: Plans
    shared: Shared | None = None
    adapter: Adapter | None = None

    @property
    def layers(self) -> int:
        """Layers of the model."""
        return len(self.bytes.kv.stored)

    @property
    def everything_fits(self) -> bool:
        """Whether the KV cache and all weights fit into the budget, and every cache holds all units of its group."""
        if self.shared:
            return self.bytes.enough and sum(self.shared.sizes) == self.bytes.sparse
        return self.bytes.enough and all(plan.capacity == plan.units for plan in self.plans)


def dram_budget(text: str, weights: int, kv_reserved: int) -> int:
    """Bytes of ``--dram``: a size such as "4 GB", or a share of the model's weights such as "50%".

    A share counts weight bytes only, and the KV cache is added to it, so that the same share means the same room for
    weights at every context length.

    Raises:
        SettingError: the text is neither a size nor a share.
    """
    text = text.strip()
    if text.endswith("%"):
        try:
            share = float(text[:-1]) / 100
        except ValueError as error:
            raise SettingError(f"--dram {text}: not a number before the %; write 50% or 4GB") from error
        if not 0 <= share <= 100:
            raise SettingError(f"--dram {text}: a share must be between 0% and 10000%")
        return int(share * weights + 1e-9) + kv_reserved
    try:
        size = int(parse(text, "size"))
    except UnitError as error:
        raise SettingError(f"--dram {text}: {error}; or write a share such as 50%") from error
    if size > _LARGEST:
        raise SettingError(f"--dram {text}: is more than {show_size(_LARGEST)}")
    return size


def _fewer(kv_tokens: int, longest: int | None) -> str:
    """Advice for a smaller KV cache, which must still hold the longest sequence."""
    if longest is not None and longest < kv_tokens:
        return f"reserve it for fewer tokens (--kv-tokens {longest} is the least)"
    return "use shorter sequences"


@dataclass(frozen=True)
class Room:
    """The DRAM budget, the KV cache in it, and how the caches divide the rest.

    Attributes:
        budget: bytes, or the text of ``--dram``.
        kv_tokens: tokens that the KV cache is reserved for.
        longest: tokens of the longest sequence, the minimum of `kv_tokens`.
        kv_window: most entries that a token reads in any layer, in place of the model's own windows.
        scope: which groups share a cache.
        shares: how cache bytes are divided over layers and groups; None: equally.
        cache: bytes of all caches, which then decide the budget; None: what the budget leaves.
        sequences: most sequences that are decoded together, each with its own KV cache and states.
    """

    budget: int | str
    kv_tokens: int
    longest: int | None = None
    kv_window: int | None = None
    scope: Scope = "matrix"
    shares: Shares | None = None
    cache: int | None = None
    sequences: int = 1


def place(
    plans: Plans, model: ModelShape, bits: Bits, room: Room, predictor_parameters: int, adapter: Adapter | None = None
) -> Placement:
    """Place a model in DRAM and Flash.

    Args:
        plans: the policy's groups.
        model: shape of the model.
        bits: bits of stored numbers.
        room: DRAM budget, KV cache and division of the caches.
        predictor_parameters: parameters of the policy itself in all layers.
        adapter: a LoRA adapter; if it is not merged, it also lies in DRAM.

    Raises:
        SettingError: the budget cannot hold the KV cache, or the shares do not match the groups.
    """
    sizes, layers, kv = footprint(model, bits), model.num_hidden_layers, KVCache.of(model, bits, room.kv_window)
    kv_reserved = room.sequences * (kv.reserved(room.kv_tokens) + kv.state)
    budget = dram_budget(room.budget, sizes.weights, kv_reserved) if isinstance(room.budget, str) else room.budget
    if room.cache is None and budget < kv_reserved:
        several = f" of each of {room.sequences} sequences" if room.sequences > 1 else ""
        raise SettingError(
            f"DRAM budget {show_size(budget)} cannot hold the KV cache of {room.kv_tokens} tokens{several}, "
            f"{show_size(kv_reserved)}: {show_size(kv_reserved - budget)} are missing; give more with --dram, store "
            f"it in fewer bits (--bits kv_cache={bits.kv_cache / 2:g}), or {_fewer(room.kv_tokens, room.longest)}"
            + (", or decode fewer sequences together (--lockstep)" if several else "")
        )
    dense, parameters_of = _unmasked(plans, model, bits)
    kept = stored_bytes(predictor_parameters, bits.predictor)
    kept += stored_bytes(adapter.counted, bits.adapter) if adapter else 0
    unmasked = Unmasked(
        attention=tuple(attention for attention, _ in dense),
        mlp=tuple(mlp for _, mlp in dense),
        kept=tuple(kept // layers + (layer < kept % layers) for layer in range(layers)),
        lm_head=sizes.lm_head,
    )
    where = Bytes(
        budget=budget if room.cache is None else kv_reserved + unmasked.total + room.cache,
        kv_tokens=room.kv_tokens,
        sequences=room.sequences,
        kv=kv,
        unmasked=unmasked,
        looked_up=stored_bytes(model.embedding_row, bits.of("embedding_row")),
        sparse=sum(plan.total_bytes for plan in plans),
        weights=sizes.weights,
    )
    shared, held = _caches(plans, where.cache, room.scope, room.shares)
    head = model.head_parameters + model.outside_parameters
    parameters = Parameters(
        total=sum(map(model.attention_parameters, range(layers))) + model.used_mlp_parameters + head,
        attention=tuple(attention for attention, _ in parameters_of),
        mlp=tuple(mlp for _, mlp in parameters_of),
        lm_head=head,
        predictor=predictor_parameters,
    )
    return Placement(where, parameters, plans.with_capacities(held), shared, adapter)


def _unmasked(plans: Plans, model: ModelShape, bits: Bits) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """What no mask cuts, by layer: bytes of attention and MLP, shared experts included, and numbers of weights of both.

    The arithmetic on a fixed state is two multiplications for each of its numbers, and counts as attention.
    """
    sizes, numbers = [], []
    for layer, own in enumerate(model.by_layer):
        masked = {name.partition(".")[0] for plan in plans[layer] for name in plan.group.slices} if plans else set()
        left = {name: matrix.elements for name, matrix in model.matrices(layer).items() if name not in masked}
        whole = {name: stored_bytes(elements, bits.of(name, layer)) for name, elements in left.items()}
        other = stored_bytes(own.other_parameters, bits.of("other", layer)) + (own.dense_bytes or 0)
        sizes.append((_sum(whole, ATTENTION) + other, _sum(whole, MLP) + shared_bytes(model, bits, layer)))
        shared = own.experts.shared_parameters if own.experts else 0
        attention = _sum(left, ATTENTION) + own.other_parameters + 2 * own.state_elements
        numbers.append((attention, _sum(left, MLP) + shared))
    return sizes, numbers


def _sum(values: dict[str, int], names: tuple[str, ...]) -> int:
    return sum(values[name] for name in names if name in values)


def _caches(plans: Plans, size: int, scope: Scope, shares: Shares | None) -> tuple[Shared | None, list[int]]:
    """Divide the bytes of the caches: the shared caches, if any, and the capacity of each group in units."""
    if not plans:
        return None, []
    totals = [plan.total_bytes for plan in plans]
    weights = shares.of([[plan.name for plan in layer] for layer in plans.by_layer]) if shares else None
    if scope != "matrix":
        layers = [layer for layer, groups in enumerate(plans.by_layer) if groups]
        whole = [sum(plan.total_bytes for plan in plans[layer]) for layer in layers]
        if scope == "global":
            sizes: tuple[int, ...] = (min(size, sum(whole)),)
            return Shared(scope, sizes), [plan.held(sizes[0]) for plan in plans]
        if weights is None:
            sizes = tuple(min(size // len(layers), most) for most in whole)
        else:
            sizes = tuple(divide(size, [sum(weights[layer]) for layer in layers], whole))
        size_of = dict(zip(layers, sizes, strict=True))
        return Shared(scope, sizes), [plan.held(size_of[plan.layer]) for plan in plans]
    if weights is None:
        # each masked matrix of each layer gets the same bytes, in whole numbers so that the floor is exact. One slice
        # of one group cuts a matrix, so a group's share is proportional to its slices
        parts = sum(len(plan.slice_bytes) for plan in plans)
        return None, [plan.held(size * len(plan.slice_bytes) // parts) for plan in plans]
    sizes_of = divide(size, [weight for row in weights for weight in row], totals)
    return None, [plan.held(share) for plan, share in zip(plans, sizes_of, strict=True)]
