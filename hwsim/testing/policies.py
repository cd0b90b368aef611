"""The contract of policies, rule by rule.

The checks run on a small made-up model with made-up signals, in well under a second; they need no trace and no weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from pydantic import ValidationError

from hwsim.errors import ContractError, HwsimError, one_line
from hwsim.evictions.lru import Lru
from hwsim.model import ModelShape
from hwsim.placement import GroupPlan
from hwsim.policy import Policy
from hwsim.profile import Profile
from hwsim.select import scan
from hwsim.simulation import Settings, check_parameters, layout
from hwsim.trace.header import Sequence

SMALL_MODEL = ModelShape(
    name="small",
    num_hidden_layers=3,
    hidden_size=48,
    intermediate_size=120,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=12,
    vocab_size=100,
)
_SEQUENCES = [Sequence(tokens=14, prompt=2), Sequence(tokens=9)]
_DEVICE = Profile.model_validate(
    {"name": "any", "dram": {"budget": "1 GB", "bandwidth": "1 GB/s"}, "flash": {"read_bandwidth": "1 GB/s"}}
)


class RandomSignals:
    """Heavy-tailed signals that follow each other, the same for the same seed."""

    def __init__(self, model: ModelShape, tokens: int, seed: int = 0) -> None:
        self._model, self._tokens, self._seed = model, tokens, seed

    def read(self, layer: int, signal: str, start: int = 0, stop: int | None = None) -> np.ndarray:
        """float32 ``[stop - start, width]``."""
        if signal == "glu" and self._model.gated:
            return self.read(layer, "up", start, stop) * self.read(layer, "gate", start, stop)
        rng = np.random.default_rng([self._seed, layer, *signal.encode()])
        width = self._model.signal_width(signal)
        worth = np.exp(rng.normal(size=width))
        noise = rng.standard_t(4, size=(self._tokens, width))
        for token in range(1, self._tokens):
            noise[token] = 0.7 * noise[token - 1] + 0.7 * noise[token]
        return (worth * noise)[start:stop].astype(np.float32)

    def norm(self, layer: int, name: str) -> np.ndarray:
        """float32 ``[units]``."""
        rng = np.random.default_rng([self._seed, layer, *name.encode()])
        return np.exp(rng.normal(size=self._model.signal_width(name))).astype(np.float32)


def check_policy(policy: type[Policy] | Policy, model: ModelShape = SMALL_MODEL) -> list[str]:
    """Run every rule of the policy contract.

    Args:
        policy: the class, made with its defaults, or an instance.
        model: a shape to try it on; the default is small and has a gate.

    Returns:
        The rules that were checked, in words.

    Raises:
        ContractError: the first rule that is broken, and how.
    """
    kind = policy if isinstance(policy, type) else type(policy)
    if not issubclass(kind, Policy):
        raise ContractError(f"{kind.__name__} is no subclass of hwsim.policy.Policy")
    if not (kind.__doc__ or "").strip() or kind.__doc__ == Policy.__doc__:
        raise ContractError(f"{kind.__name__} has no docstring; its first line is what `hwsim policies` prints")
    made = _make(kind) if isinstance(policy, type) else policy
    check_parameters(made, kind.__name__)
    done = ["it has a summary, and default parameters that JSON can hold"]
    checks: list[Callable[[Policy, ModelShape], str]] = [_groups, _masks, _same_twice, _layers_apart, _density]
    return done + [check(made, model) for check in checks]


def _make(kind: type[Policy]) -> Policy:
    try:
        return kind()
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        rule = "has none" if first["type"] == "missing" else " ".join(first["msg"].split())
        which = f"{field}: " if field else ""
        raise ContractError(f"{kind.__name__}: every parameter needs a default: {which}{rule}") from error
    except HwsimError:
        raise
    except (Exception, SystemExit) as error:
        raised = f"{type(error).__name__}: {one_line(error)}"
        raise ContractError(f"{kind.__name__}: cannot be made with its defaults: {raised}") from error


def _plans(policy: Policy, model: ModelShape) -> tuple[GroupPlan, ...]:
    return layout(model, _DEVICE, policy, max(each.tokens for each in _SEQUENCES), Settings(dram="60%")).groups


def _groups(policy: Policy, model: ModelShape) -> str:
    if _plans(policy, model) != _plans(policy, model):
        raise ContractError(f"{type(policy).__name__}: groups() gives another answer when it is asked again")
    return "its groups fit the model, and no mask is decided from what it must itself produce"


def _run(policy: Policy, model: ModelShape, layers: Iterable[int] | None = None) -> dict[tuple[int, str, int], bytes]:
    """All masks by (layer, group, token); of some layers only, if asked."""
    masks: dict[tuple[int, str, int], bytes] = {}

    def listen(layer: int, group: str, token: int, mask: np.ndarray) -> None:
        masks[layer, group, token] = mask.tobytes()

    tokens = sum(sequence.tokens for sequence in _SEQUENCES)
    source = RandomSignals(model, tokens)
    scan(source, model, _SEQUENCES, policy, _plans(policy, model), Lru(), listener=listen, layers=layers)
    return masks


def _masks(policy: Policy, model: ModelShape) -> str:
    _run(policy, model)  # the scan itself holds the policy to all of this
    return "its masks have the right shape and hold what keep says, and signals are left as they are"


def _same_twice(policy: Policy, model: ModelShape) -> str:
    if _run(policy, model) != _run(policy, model):
        raise ContractError(
            f"{type(policy).__name__}: the same run gives other masks; keep state in ctx.state, draw from ctx.rng"
        )
    return "the same run gives the same masks"


def _layers_apart(policy: Policy, model: ModelShape) -> str:
    last = model.num_hidden_layers - 1
    alone = _run(policy, model, [last])
    together = {key: mask for key, mask in _run(policy, model).items() if key[0] == last}
    if alone != together:
        raise ContractError(f"{type(policy).__name__}: masks of one layer depend on another; keep state in ctx.state")
    return "layers do not influence each other"


def _density(policy: Policy, model: ModelShape) -> str:
    kind: Any = type(policy)
    if "density" not in kind.model_fields:
        return "it has no density, so --density is refused"
    read = []
    for density in (0.3, 0.5, 0.7, 0.8, 0.9, 1.0):
        try:
            plans = _plans(kind(**policy.model_dump() | {"density": density}), model)
        except (ValueError, HwsimError):
            continue  # it may refuse a density, with a reason
        if all(plan.k[0] for plan in plans):
            _check_density(kind, density, plans, policy, model)
        masked = sum(plan.k[0] * plan.parameters for plan in plans)
        whole = sum(plan.units * plan.parameters for plan in plans)
        read.append((density, whole - masked))
    for (low, spared), (high, then) in pairwise(read):
        if then > spared:
            raise ContractError(f"{kind.__name__}: density {high} reads less than density {low}")
    return "its density is the share of the MLP that it reads, and a higher one never reads less"


def _check_density(
    kind: type[Policy], density: float, plans: tuple[GroupPlan, ...], policy: Policy, model: ModelShape
) -> None:
    """`density` must be that of the whole MLP, unmasked matrices and predictor counted, to a unit of each group."""
    made = kind(**policy.model_dump() | {"density": density})
    masked = {name.partition(".")[0] for plan in plans for name in plan.group.slices}
    whole = sum(model.matrices()[name].elements for name in model.mlp if name not in masked)
    read = whole + sum(plan.k[0] * plan.mlp_parameters for plan in plans)
    share = (read + made.predictor_parameters(model) / model.num_hidden_layers) / model.mlp_parameters
    slack = sum(plan.mlp_parameters for plan in plans) / model.mlp_parameters
    if abs(share - density) > slack + 1e-9:
        raise ContractError(
            f"{kind.__name__}: density {density} reads {share:.3f} of the MLP; density counts all of its matrices, "
            "masked or not: (2 keep_input + keep_down)/3 for DIP"
        )
