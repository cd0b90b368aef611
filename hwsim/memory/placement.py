"""What lies where: resident weights in DRAM first, in the order that DESIGN fixes, then the caches; the rest streams.

All sizes are bytes and whole numbers; see docs/model.md for the rules in prose.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from hwsim.errors import SettingError, UnitError
from hwsim.memory.groups import GroupPlan, plan_group, plan_groups, plan_layers
from hwsim.memory.shares import Scope, Shared, Shares, divide
from hwsim.model.lora import Adapter
from hwsim.model.shape import ATTENTION, Bits, ModelShape, footprint, stored_bytes
from hwsim.util.units import parse, show_size

__all__ = ["GroupPlan", "Placement", "dram_budget", "place", "plan_group", "plan_groups", "plan_layers"]

_LARGEST = 10**18  # bytes of a DRAM budget: more is a slip of the pen


@dataclass(frozen=True)
class Placement:
    """Where a model's bytes lie under one policy and one DRAM budget.

    Attributes:
        budget: DRAM that the model may use.
        kv_reserved: KV cache for `kv_tokens` tokens.
        kv_entry: KV cache of one token, all layers.
        resident_weights: weights that no mask cuts, pinned or streamed.
        streamed: of those, the bytes that do not fit and are read from Flash at every token.
        sparse: bytes of all matrices that masks cut.
        cache_bytes: what is left of the budget for the caches.
        groups: the policy's groups, in the order in which a layer decides them.
        shared: the caches, where groups share them.
        weights: bytes of the whole model's weights.
        layers: how many layers the model has.
        parameters: weights (numbers, not bytes) of all layers and the LM head.
        unmasked_mlp: weights (parameters) of the MLP that are read whole, all layers.
        predictor_parameters: parameters of the policy itself.
        adapter: the LoRA adapter that the model carries.
        attention_parameters: unmasked weights of the attention and the LM head.
        macs_per_entry: multiplications of one token's attention for each KV entry, all layers.
        unmasked_bytes: of the weights that no mask cuts: of a layer's attention, the LM head, what the policy and the
            adapter keep, and of a layer's MLP.
        head_parameters: weights of the LM head.
    """

    budget: int
    kv_tokens: int
    kv_reserved: int
    kv_entry: int
    resident_weights: int
    streamed: int
    sparse: int
    cache_bytes: int
    groups: tuple[GroupPlan, ...]
    weights: int
    layers: int
    parameters: int
    unmasked_mlp: int
    predictor_parameters: int
    attention_parameters: int
    macs_per_entry: int
    unmasked_bytes: tuple[int, int, int, int]
    head_parameters: int
    adapter: Adapter | None = None
    shared: Shared | None = None

    @property
    def pinned_weights(self) -> int:
        """Resident weights that do lie in DRAM, read from there at every token."""
        return self.resident_weights - self.streamed

    def by_layer(self) -> tuple[list[int], list[int]]:
        """Bytes of unmasked weights that each layer reads, and after the last one the LM head: pinned, and streamed.

        They are pinned in the order of rule 2: attention, LM head, what the policy and the adapter keep, MLP.
        """
        attention, head, extra, mlp = self.unmasked_bytes
        each = [extra // self.layers + (layer < extra % self.layers) for layer in range(self.layers)]
        order = [(layer, attention) for layer in range(self.layers)] + [(self.layers, head)]
        order += list(enumerate(each)) + [(layer, mlp) for layer in range(self.layers)]
        pinned, streamed, room = [0] * (self.layers + 1), [0] * (self.layers + 1), self.pinned_weights
        for layer, size in order:
            there = min(size, room)
            pinned[layer] += there
            streamed[layer] += size - there
            room -= there
        return pinned, streamed

    @property
    def everything_fits(self) -> bool:
        """Whether the KV cache and all weights fit into the budget, and every cache holds all units of its group."""
        if self.shared:
            return self.enough and sum(self.shared.sizes) == self.sparse
        return self.enough and all(plan.capacity == plan.units for plan in self.groups)

    @property
    def enough(self) -> bool:
        """Whether the budget is as large as the KV cache and all weights; equal shares may still be too small."""
        return self.kv_reserved + self.resident_weights + self.sparse <= self.budget


def dram_budget(text: str, weights: int, kv_reserved: int) -> int:
    """Bytes of ``--dram``: a size such as "4 GB", or a share of the model's weights such as "50%".

    A share is of the weight bytes alone; the KV cache is provided on top of it, so that the same share means the same
    room for weights at every length of context.

    Raises:
        SettingError: neither.
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
    """How to get along with a smaller KV cache: it must hold the longest sequence."""
    if longest is not None and longest < kv_tokens:
        return f"reserve it for fewer tokens (--kv-tokens {longest} is the least)"
    return "use shorter sequences"


def place(
    plans: tuple[GroupPlan, ...],
    model: ModelShape,
    bits: Bits,
    budget: int | str,
    kv_tokens: int,
    predictor_parameters: int,
    *,
    adapter: Adapter | None = None,
    longest: int | None = None,
    scope: Scope = "matrix",
    shares: Shares | None = None,
) -> Placement:
    """Lay a model out in DRAM and Flash.

    Args:
        plans: the policy's groups.
        budget: bytes, or the text of ``--dram``.
        kv_tokens: tokens that the KV cache is reserved for.
        predictor_parameters: parameters that the policy itself keeps, all layers.
        adapter: a LoRA adapter: what is not merged lies in DRAM, too.
        longest: tokens of the longest sequence, the least that the KV cache can be reserved for.
        scope: who shares a cache.
        shares: how its bytes are divided over layers and groups; None: equally.

    Raises:
        SettingError: the budget cannot hold the KV cache; the shares are not those of these groups.
    """
    sizes, layers, matrices = footprint(model, bits), model.num_hidden_layers, model.matrices()
    kv_reserved = kv_tokens * sizes.kv_entry
    if isinstance(budget, str):
        budget = dram_budget(budget, sizes.weights, kv_reserved)
    if budget < kv_reserved:
        raise SettingError(
            f"DRAM budget {show_size(budget)} cannot hold the KV cache of {kv_tokens} tokens, "
            f"{show_size(kv_reserved)}: {show_size(kv_reserved - budget)} are missing; give more with --dram, store "
            f"it in fewer bits (--bits kv_cache={bits.kv_cache / 2:g}), or {_fewer(kv_tokens, longest)}"
        )
    masked = {name.partition(".")[0] for plan in plans for name in plan.group.slices}
    whole = {
        name: stored_bytes(matrix.elements, bits.of(name)) for name, matrix in matrices.items() if name not in masked
    }
    extra = stored_bytes(predictor_parameters, bits.predictor)
    extra += stored_bytes(adapter.counted, bits.adapter) if adapter else 0
    in_attention = sum(size for name, size in whole.items() if name in ATTENTION)
    in_mlp = sum(size for name, size in whole.items() if name not in ATTENTION)
    resident = layers * (in_attention + in_mlp) + sizes.lm_head + extra
    streamed = max(0, kv_reserved + resident - budget)
    cache_bytes = max(0, budget - kv_reserved - resident)
    shared, groups = _caches(plans, layers, cache_bytes, scope, shares)
    attention = sum(matrices[name].elements for name in ATTENTION if name not in masked)
    return Placement(
        budget=budget,
        kv_tokens=kv_tokens,
        kv_reserved=kv_reserved,
        kv_entry=sizes.kv_entry,
        resident_weights=resident,
        streamed=streamed,
        sparse=layers * sum(plan.total_bytes for plan in plans),
        cache_bytes=cache_bytes,
        groups=groups,
        weights=sizes.weights,
        layers=layers,
        parameters=layers * (model.attention_parameters + model.mlp_parameters) + model.vocab_size * model.hidden_size,
        unmasked_mlp=layers * sum(matrices[name].elements for name in model.mlp if name not in masked),
        predictor_parameters=predictor_parameters,
        adapter=adapter,
        attention_parameters=layers * attention + model.vocab_size * model.hidden_size,
        macs_per_entry=layers * 2 * model.num_attention_heads * model.head_dim,
        unmasked_bytes=(in_attention, sizes.lm_head, extra, in_mlp),
        head_parameters=model.vocab_size * model.hidden_size,
        shared=shared,
    )


def _caches(
    plans: tuple[GroupPlan, ...], layers: int, size: int, scope: Scope, shares: Shares | None
) -> tuple[Shared | None, tuple[GroupPlan, ...]]:
    """Divide the cache's bytes: the caches that groups share, if any, and the groups with what theirs can hold."""
    if not plans:
        return None, plans
    weights = shares.of(layers, [plan.group.name for plan in plans]) if shares else None
    totals = [plan.total_bytes for plan in plans]
    if scope != "matrix":
        whole = sum(totals)
        if scope == "global":
            sizes: tuple[int, ...] = (min(size, layers * whole),)
        elif weights is None:
            sizes = (min(size // layers, whole),) * layers
        else:
            sizes = tuple(divide(size, [sum(row) for row in weights], [whole] * layers))
        held = [tuple(plan.held(each) for each in sizes) for plan in plans]
        return Shared(scope, sizes), _holding(plans, held if len(set(sizes)) > 1 else [each[:1] for each in held])
    if weights is None:
        # each masked matrix of each layer gets the same bytes; in whole numbers, so that the floor is exact. A matrix
        # is cut by one slice of one group, so a group's share counts its slices
        parts = layers * sum(len(plan.slice_bytes) for plan in plans)
        equal = [plan.held(size * len(plan.slice_bytes) // parts) for plan in plans]
        return None, _holding(plans, [(units,) for units in equal])
    given = divide(size, [weight for row in weights for weight in row], totals * layers)
    by_group = [given[index :: len(plans)] for index in range(len(plans))]
    return None, _holding(plans, [tuple(map(plan.held, sizes)) for plan, sizes in zip(plans, by_group, strict=True)])


def _holding(plans: tuple[GroupPlan, ...], held: list[tuple[int, ...]]) -> tuple[GroupPlan, ...]:
    """The plans with their capacities, one for all layers or one for each."""
    return tuple(
        replace(plan, capacity=min(units), capacities=units if len(units) > 1 else ())
        for plan, units in zip(plans, held, strict=True)
    )
