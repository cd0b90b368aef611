"""The contract of policies, rule by rule."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from hwsim.device.profile import Profile
from hwsim.errors import ContractError, HwsimError
from hwsim.evictions.lru import Lru
from hwsim.masking.decider import Block
from hwsim.masking.scan import scan
from hwsim.masking.streams import Masking, signal_blocks
from hwsim.memory.groups import Place, Plans
from hwsim.model.shape import ModelShape
from hwsim.policy import Context, Policy
from hwsim.simulation.run import Conditions, Source, recorded
from hwsim.simulation.settings import Settings
from hwsim.testing.drive import SMALL_MODEL, SMALL_SPARSE_MODEL, MaskCollector, RandomSignals, for_experts
from hwsim.testing.rules import at_the_ends, check_rules, make
from hwsim.trace.header import Sequence
from hwsim.trace.sequences import Sequences
from hwsim.util import kernels

_SEQUENCES = [Sequence(tokens=14, prompt=2), Sequence(tokens=9)]
_DEVICE = Profile.model_validate(
    {"name": "any", "dram": {"budget": "1 GB", "bandwidth": "1 GB/s"}, "flash": {"read_bandwidth": "1 GB/s"}}
)
_DENSITIES = (0.3, 0.5, 0.7, 0.8, 0.9, 1.0)


def check_policy(policy: type[Policy] | Policy, model: ModelShape | None = None) -> list[str]:
    """Run every rule of the policy contract.

    Args:
        policy: an instance, or a class, which is made with its defaults.
        model: shape of the model to test with; None: a small one that has a gate, or one that has experts if the
            policy decides them. A policy that reads a file of arrays fits only the model of that file.

    Returns:
        The rules that were checked, in words.

    Raises:
        BrokenRuleError: a rule is broken; a `ContractError` that names the first broken rule.
    """
    instance = make(policy, Policy, [text for text, _ in _RULES])
    shape = model or (SMALL_SPARSE_MODEL if for_experts(instance) else SMALL_MODEL)
    return check_rules([(text, partial(check, instance, shape)) for text, check in _RULES])


def masking_of(policy: Policy, model: ModelShape) -> Masking:
    """The masking of a policy with caches for 60 % of the weights."""
    source = Source(recorded(model, _SEQUENCES), {})
    return Conditions(_DEVICE, Lru(), Settings(dram="60%")).run(source, policy).masking


Masks = dict[tuple[int, str, int], bytes]
"""Masks of a run, by (layer, group, token)."""


def _run(policy: Policy, model: ModelShape, layers: Iterable[int] | None = None) -> Masks:
    """The masks of the given layers; None: of the first, a middle and the last layer."""
    last = model.num_hidden_layers - 1
    layers = sorted({0, last // 2, last}) if layers is None else layers
    kept, sequences = MaskCollector(), Sequences(_SEQUENCES)
    source = RandomSignals(model, sequences.tokens)
    scan(source, sequences, masking_of(policy, model), layers=layers, observers=[kept])
    return {
        (layer, group, token): mask.tobytes()
        for (layer, group), masks in kept.masks_of.items()
        for token, mask in enumerate(masks)
    }


def _first_difference(one: Masks, other: Masks) -> str:
    layer, group, token = next(key for key in one if one[key] != other.get(key))
    return f"layer {layer}, group {group}, token {token}"


def _groups(policy: Policy, model: ModelShape) -> None:
    if masking_of(policy, model).plans != masking_of(policy, model).plans:
        raise ContractError(
            f"{type(policy).__name__}: groups() gives another answer when it is asked again; "
            "let it follow from the fields and the model alone"
        )


def _untouched(policy: Policy, model: ModelShape) -> None:
    """Run the policy and compare every context with a copy from before the policy saw it."""
    try:
        _run(_watched(policy), model)
    except HwsimError as error:
        if isinstance(error.__cause__, _Touched):
            raise ContractError(f"{type(policy).__name__}: {error.__cause__}") from error
        if isinstance(error.__cause__, ValueError) and any(word in str(error) for word in ("read-only", "WRITEABLE")):
            raise ContractError(f"{error}; signals and the cache are read-only: change a copy") from error
        # other errors are reported by the rule that they break


class _Touched(Exception):  # noqa: N818
    """A policy changed its context."""


def _watched(policy: Policy) -> Policy:
    """The same policy, but it raises `_Touched` if one of its methods changes the context."""
    kind = type(policy)

    def watch(name: str) -> Callable[[Policy, Context], object]:
        def method(self: Policy, ctx: Context) -> object:
            before, signals = _seen(ctx), dict(ctx.signals)
            answer = getattr(kind, name)(self, ctx)
            after = _seen(ctx)
            changed = [field for field in before if before[field] != after[field]]
            if ctx.signals.keys() != signals.keys() or any(ctx.signals[key] is not signals[key] for key in signals):
                changed.append("signals")
            if changed:
                at = f"layer {before['layer']}, group {ctx.group.name}, token {before['token']}"
                raise _Touched(f"{name}() at {at} changed ctx.{changed[0]}; what is to be kept belongs in ctx.state")
            return answer

        return method

    own = [name for name in ("score", "select") if getattr(kind, name) is not getattr(Policy, name)]
    subclass: Any = type(kind.__name__, (kind,), {"__doc__": kind.__doc__, "__module__": kind.__module__} | {
        name: watch(name) for name in own
    })  # fmt: skip
    watched: Policy = subclass.model_construct(**dict(policy))
    return watched


def _seen(ctx: Context) -> dict[str, Any]:
    """A copy of the attributes that a policy must not change; arrays are read-only anyway."""
    return {
        "layer": ctx.layer, "token": ctx.token, "units": ctx.units, "k": ctx.k, "rng": id(ctx.rng), "model": ctx.model,
        "group": copy.deepcopy(ctx.group),
    }  # fmt: skip


def _masks(policy: Policy, model: ModelShape) -> None:
    _run(policy, model)  # the scan itself checks all of this


def _scores(policy: Policy, model: ModelShape) -> str | None:
    """Check that `scores` of a block is bit-identical to `score` of its tokens, for a cache that holds some units."""
    tokens, scored, masking = 9, False, masking_of(policy, model)
    for place in masking.plans.places([0]):
        for block in signal_blocks(RandomSignals(model, tokens), place.plan, range(tokens)):
            with np.errstate(over="ignore"):
                halves = {name: values.astype(np.float16) for name, values in block.signals.items()}
            stored = {name: kernels.read_only(values) for name, values in halves.items() if np.isfinite(values).all()}
            for variant in (
                block,
                block._replace(signals=block.signals | stored),
            ):  # with float16, too, as a trace gives them
                scored |= _scored(masking, place, variant)
    return None if scored else "it has no scores() of many tokens, so it is asked token by token"


def _scored(masking: Masking, place: Place, block: Block) -> bool:
    """Compare `scores` with `score` for the tokens of a block; False if the policy has no `scores` for them."""
    plan, (many, single) = place.plan, (masking.decider(place) for _ in range(2))
    cached = np.random.default_rng(0).random(plan.units) < 0.5
    for decider in (many, single):
        decider.begin(0, kernels.read_only(cached))
    if not many.scores_blocks or (scores := many.scores(block)) is None:
        return False
    values, uncached = np.abs(scores[0]).astype(np.float32) if scores[0].dtype == np.float16 else scores[0], scores[1]
    for at, row in enumerate(block.rows()):
        chosen = values[at]
        if uncached is not None:
            chosen = np.where(cached, chosen, uncached[at] * chosen)
        if not np.array_equal(kernels.top_k(chosen, plan.k), single.decide(row)):
            raise ContractError(
                f"{type(masking.policy).__name__}: scores() at layer 0, group {plan.name}, token {at} choose "
                "other units than score(); give the very same numbers, or leave scores() out"
            )
    return True


def _masks_at_once(policy: Policy, model: ModelShape) -> str | None:
    """Check that `masks` of a block are those of `select` for its tokens, which do not depend on a cache."""
    tokens, compared, masking = 9, False, masking_of(policy, model)
    for place in masking.plans.places([0]):
        many, single = (masking.decider(place) for _ in range(2))
        for decider in (many, single):
            decider.begin(0, None, "masks() decides many tokens at once; leave masks() out, or do without the cache")
        for block in signal_blocks(RandomSignals(model, tokens), place.plan, range(tokens)):
            masks = many.masks(block) if many.masks_blocks else None
            if masks is None:
                continue
            compared = True
            for token, (mask, row) in enumerate(zip(masks, block.rows(), strict=True)):
                if not np.array_equal(mask, single.decide(row)):
                    raise ContractError(
                        f"{type(policy).__name__}: masks() at layer 0, group {place.plan.name}, token {token} choose "
                        "other units than select(); choose the very same, or leave masks() out"
                    )
    return None if compared else "it has no masks() of many tokens, so it is asked token by token"


def _same_twice(policy: Policy, model: ModelShape) -> None:
    one, other = _run(policy, model), _run(policy, model)
    if one != other:
        raise ContractError(
            f"{type(policy).__name__}: the same run gives other masks, first at {_first_difference(one, other)}; "
            "keep state in ctx.state, draw from ctx.rng"
        )


def _layers_apart(policy: Policy, model: ModelShape) -> None:
    last = model.num_hidden_layers - 1
    alone = _run(policy, model, [last])
    together = {key: mask for key, mask in _run(policy, model).items() if key[0] == last}
    if alone != together:
        raise ContractError(
            f"{type(policy).__name__}: masks of one layer depend on another, first at "
            f"{_first_difference(alone, together)}; keep state in ctx.state"
        )


def _bounds(policy: Policy, model: ModelShape) -> str | None:
    return at_the_ends(policy, lambda variant: _run(variant, model))


def _density(policy: Policy, model: ModelShape) -> str | None:
    kind: Any = type(policy)
    if "density" not in kind.model_fields:
        return "it has no density, so --density is refused"
    if for_experts(policy):
        return "it decides experts, so what its density means is its own affair"
    read: list[tuple[float, float]] = []
    for density in _DENSITIES:
        try:
            variant = kind(**dict(policy) | {"density": density})
            plans = masking_of(variant, model).plans
            share = _share(variant, plans, model)
        except (ValueError, HwsimError):
            continue  # a policy may refuse a density, with a reason
        read.append((density, share))
        if all(plan.group.keep is not None for plan in plans):  # otherwise select() decides, depending on the signals
            _check_density(variant, density, share, plans, model)
    for (low, before), (high, then) in pairwise(read):
        if then < before:
            raise ContractError(
                f"{kind.__name__}: density {high} reads less than density {low}, {then:.3f} of the MLP after "
                f"{before:.3f}; let keep grow with it"
            )
    return None


def _share(policy: Policy, plans: Plans, model: ModelShape) -> float:
    """Share of the MLP's weights that a mean token of a run reads, including unmasked matrices and predictor."""
    masked = {name.partition(".")[0] for plan in plans for name in plan.group.slices}
    read = float(sum(model.matrices()[name].elements for name in model.mlp if name not in masked))
    sizes: dict[str, list[int]] = {}
    for (_, group, _), mask in _run(policy, model).items():
        sizes.setdefault(group, []).append(mask.count(1))
    read += sum(float(np.mean(sizes[plan.name])) * plan.mlp_parameters for plan in plans[0])
    return (read + policy.predictor_parameters(model) / model.num_hidden_layers) / model.mlp_parameters


def _check_density(policy: Policy, density: float, share: float, plans: Plans, model: ModelShape) -> None:
    """Refuse a `density` that differs from the share of the whole MLP by more than a unit of each group."""
    slack = sum(plan.mlp_parameters for plan in plans[0]) / model.mlp_parameters
    if abs(share - density) > slack + 1e-9:
        raise ContractError(
            f"{type(policy).__name__}: density {density} reads {share:.3f} of the MLP; density counts all of its "
            "matrices, masked or not: (2 keep_input + keep_down)/3 for DIP"
        )


_RULES: list[tuple[str, Callable[[Policy, ModelShape], str | None]]] = [
    ("its groups fit the model, and no mask is decided from what it must itself produce", _groups),
    ("what it is shown it leaves as it is", _untouched),
    ("its masks have the right shape and hold what keep says", _masks),
    ("scores() of many tokens, where it has them, are those of score()", _scores),
    ("masks() of many tokens, where it has them, are those of select()", _masks_at_once),
    ("the same run gives the same masks", _same_twice),
    ("layers do not influence each other", _layers_apart),
    ("at the ends of its parameters' bounds it works, or gives a reason", _bounds),
    ("its density is the share of the MLP that it reads, and a higher one never reads less", _density),
]
