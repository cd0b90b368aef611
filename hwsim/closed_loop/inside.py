"""Experts of a running model of which only parts are read: their output is computed here, from masked vectors.

The input of gate and up is masked by columns, which all chosen experts share; glu by neurons, of each expert; the
output by rows of down. Tokens whose chosen experts are the model's own, and whole, keep the model's output.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from hwsim.closed_loop.routing import Rerouting
from hwsim.errors import ModelError
from hwsim.memory.groups import GroupPlan
from hwsim.record.experts import ROWS, LayerExperts, check_mixture


class Inside:
    """One pass of the experts of one layer, from which parts are left out.

    Args:
        index: number of the layer.
        experts: its experts.
        routing: gives the weights of the chosen ones.
        name: name of the policy, for messages.
    """

    def __init__(self, index: int, experts: LayerExperts, routing: Rerouting, name: str) -> None:
        self._index, self._experts, self._routing, self._name = index, experts, routing, name
        self._seen = False  # whether the model's own output was found to be the sum of its experts

    def begin(self, entering: Any, logits: Any, ids: Any, weights: Any) -> None:
        """Begin a pass.

        Args:
            entering: what enters the experts, ``[n, inputs]``.
            logits: of the router, ``[n, experts]``.
            ids: the model's own choice by falling weight, integers ``[n, k]``.
            weights: theirs, ``[n, k]``.
        """
        self._given = entering, logits, ids, weights
        self._own = np.zeros((len(ids), self._experts.shape.count), bool)
        np.put_along_axis(self._own, ids.cpu().numpy().astype(np.int64), values=True, axis=1)
        self._chosen: np.ndarray | None = None
        self._whole = np.ones(len(ids), bool)  # tokens of which nothing is left out
        self._masks: dict[str, Any] = {}  # by place: of the input, of glu and of the output
        self._glu: Any = None

    def mask(self, plan: GroupPlan, masks: np.ndarray) -> None:
        """Take the masks of a group, bool ``[n, experts x width]``.

        Raises:
            ModelError: groups choose different experts.
        """
        units = masks.reshape(len(masks), self._experts.shape.count, plan.width)
        chosen = np.asarray(units.any(2))
        if self._chosen is not None and (chosen != self._chosen).any():
            raise ModelError(
                f"policy {self._name}: layer {self._index}: its groups within experts choose different experts for a "
                "token; let the choice depend on the same signals"
            )
        self._chosen = chosen
        self._whole &= (units == self._own[:, :, None]).all((1, 2))
        ids = self._given[2]
        if plan.group.axis == "hidden":
            mask, places = units.any(1), {_PLACE[name] for name in plan.group.slices}
        else:
            mask, places = np.take_along_axis(units, ids.cpu().numpy().astype(np.int64)[:, :, None], 1), {"glu"}
        factor = self._given[0].new_tensor(mask.astype(np.float32))
        for place in places:
            self._masks[place] = factor * self._masks.get(place, 1)

    def glu(self) -> Any:
        """Glu of the model's own experts on the masked input, with the masks so far: ``[n, k, width]``."""
        if self._glu is None:
            entering, _, ids, _ = self._given
            self._glu = self._experts.functions.chosen_glu(entering * self._masks.get("input", 1), ids)
        return self._glu * self._masks.get("glu", 1)

    def output(self, own: Any) -> Any:
        """Output of the experts.

        Args:
            own: the model's own output, ``[n, inputs]``, of its own choice.

        Raises:
            ModelError: the model's own output is not the sum of its experts.
        """
        entering, logits, ids, weights = self._given
        functions = self._experts.functions
        if not self._seen:
            self._seen, part = True, slice(0, ROWS)
            check_mixture(self._index, functions.mixture(entering[part], ids[part], weights[part]), own[part])
        if self._whole.all() or self._chosen is None:
            return own
        shares = self._routing.shares(logits, ids, weights, self._chosen)
        summed = functions.summed(self.glu(), ids, shares) * self._masks.get("output", 1)
        whole = own.new_tensor(self._whole.astype(np.float32))[:, None] != 0
        return own.where(whole, summed.to(own.dtype))


_PLACE = {"expert_gate.column": "input", "expert_up.column": "input", "expert_down.row": "output"}
_OF_NEURONS = ("expert_gate.row", "expert_up.row", "expert_down.column")
_BEFORE_GLU = ("expert_gate", "expert_up")


def check_inside(plan: GroupPlan, experts: LayerExperts, name: str) -> None:
    """Refuse a group within experts that cannot be masked in a running model.

    Raises:
        ModelError: it cannot.
    """
    cut, where = plan.group.slices, f"policy {name}: group {plan.name}"
    assert plan.choice is not None
    needs = {*plan.group.needs, *plan.choice.group.needs}
    known = _PLACE if plan.group.axis == "hidden" else dict.fromkeys(_OF_NEURONS, "")
    if others := [part for part in cut if part not in known]:
        raise ModelError(f"{where}: cuts {others[0]}; within experts, the closed loop masks {', '.join(known)}")
    if "expert_glu" in plan.choice.group.needs or (
        "expert_glu" in needs and any(part.partition(".")[0] in _BEFORE_GLU for part in cut)
    ):
        raise ModelError(
            f"{where}: is decided from expert_glu, which the running model knows only after what the group decides; "
            "such an oracle can be replayed, not run"
        )
    inputs = [part for part in cut if _PLACE.get(part) == "input"]
    if plan.group.axis == "hidden" and inputs and len(inputs) < 1 + experts.shape.gated:
        raise ModelError(f"{where}: cuts {inputs[0]} alone, but gate and up of an expert share their input; cut both")
    if plan.group.axis == "hidden" and experts.shape.input_size:
        raise ModelError(
            f"{where}: cuts the input of experts, which here is not as wide as the hidden states; choose groups of "
            "neurons"
        )
