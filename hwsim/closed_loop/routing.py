"""Another choice of experts in a running model: which weights they get, and the tensors that the experts are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from hwsim.errors import ModelError
from hwsim.record.experts import ROWS, LayerExperts, check_chosen, check_mixture
from hwsim.record.hooks import Layer
from hwsim.record.inventory.routing import Rule, find_rule

_TOKENS = 64  # of the pass that shows the rule: with few of them several rules may fit

Rules = Mapping[int, Rule | None]
"""For each sparse layer how its weights follow from the router's logits; None: unknown."""


def find_rules(model: Any, layers: Sequence[Layer], torch: Any) -> dict[int, Rule | None]:
    """Find the rules of all sparse layers, by one pass over a few tokens.

    Args:
        model: a causal language model of transformers.
        layers: its layers.
        torch: the library.

    Raises:
        ModelError: the pass did not run the router or the experts of a layer.
    """
    logits: dict[int, Any] = {}
    rules: dict[int, Rule | None] = {}
    handles: list[Any] = []

    def find(index: int, experts: LayerExperts, _: Any, ids: Any, weights: Any) -> None:
        check_chosen(index, ids, experts.shape)
        scales = [scale.clone() for scale in experts.scales()]  # a model that is read from disk frees its weights
        rules[index] = find_rule(_seen(index, logits), ids, weights, scales)

    for index, layer in enumerate(layers):
        if layer.experts is not None:
            handles += layer.experts.watch_router(partial(logits.__setitem__, index))
            handles.append(layer.experts.before(partial(find, index, layer.experts)))
    table = model.get_input_embeddings().weight
    tokens = np.unique(np.linspace(0, len(table) - 1, _TOKENS).astype(np.int64))
    try:
        with torch.inference_mode():
            model(input_ids=torch.as_tensor(tokens[None], device=table.device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    for index, layer in enumerate(layers):
        if layer.experts is not None and index not in rules:
            raise ModelError(f"layer {index}: the model did not run its experts; please report this model")
    return rules


def _seen(index: int, logits: Mapping[int, Any]) -> Any:
    if index not in logits:
        raise ModelError(
            f"layer {index}: the model did not run its router as a module, so its logits are not known; please report "
            "this model"
        )
    return logits[index]


class Rerouting:
    """Gives the experts of one layer another choice than the model's own.

    Args:
        index: number of the layer.
        experts: its experts.
        rule: how weights follow from the router's logits; None: unknown.
        name: name of the policy, for messages.

    Attributes:
        kept: whether weights were kept as they are, without a known rule, where a policy left experts out.
    """

    def __init__(self, index: int, experts: LayerExperts, rule: Rule | None, name: str) -> None:
        self._index, self._experts, self._rule, self._name = index, experts, rule, name
        self.kept = False
        self._confirmed = False
        self._check: tuple[Any, Any] | None = None  # what the output must be in some rows of this pass

    def choose(self, entering: Any, logits: Any, ids: Any, weights: Any, masks: np.ndarray) -> tuple[Any, Any] | None:
        """Ids and weights of the experts that the masks hold; None if they are all the model's own.

        Tokens whose mask is the model's own choice keep their ids and weights. Places that are not used get the weight
        0 and the id of another expert.

        Args:
            entering: what enters the experts, ``[n, inputs]``.
            logits: of the router, ``[n, experts]``; None: unknown.
            ids: the model's own choice, integers ``[n, k]``.
            weights: theirs, ``[n, k]``.
            masks: bool ``[n, experts]``, at least one expert in each row.

        Raises:
            ModelError: the rule does not give the model's own weights; or it is unknown, and a mask holds an expert
                that the model does not choose.
        """
        self._check = None
        self._check_rule(logits, ids, weights)
        wanted = ids.new_tensor(masks) != 0
        own = wanted.new_zeros(wanted.shape).scatter_(1, ids.long(), value=True)
        changed = (wanted != own).any(1)
        if not bool(changed.any()):
            return None
        if self._rule is None:
            shares = self._subset(ids, weights, wanted, own)
            self._expect(entering, ids, shares, changed)
            return ids, shares
        width = max(ids.shape[1], int(wanted.sum(1).max()))
        # chosen experts first, then those that the model has chosen, then any
        order = (2 * wanted.int() + own.int()).argsort(dim=1, descending=True, stable=True)[:, :width]
        shares = weights.new_zeros(order.shape)
        sizes = wanted.sum(1)
        for size in sizes[changed].unique().tolist():
            rows = (changed & (sizes == size)).nonzero()[:, 0]
            shares[rows, :size] = self._rule.weights_of(logits[rows], order[rows, :size]).to(shares.dtype)
        kept = (~changed).nonzero()[:, 0]
        order = order.to(ids.dtype)
        used = ids.shape[1]
        order[kept, :used], shares[kept, :used] = ids[kept], weights[kept]
        if width > used:  # their other places are those of experts that they have not chosen
            order[kept, used:] = own[kept].int().argsort(dim=1, stable=True)[:, : width - used].to(ids.dtype)
        self._expect(entering, order, shares, changed)
        return order, shares

    def shares(self, logits: Any, ids: Any, weights: Any, masks: np.ndarray) -> Any:
        """Weights of the model's own experts of which some are left out: ``[n, k]``, 0 for those.

        Args:
            logits, ids, weights: as for `choose`.
            masks: bool ``[n, experts]``, parts of the model's own choice.
        """
        wanted = (ids.new_tensor(masks) != 0).gather(1, ids.long())
        if self._rule is None:
            self.kept |= not bool(wanted.all())
            return weights * wanted.to(weights.dtype)
        self._check_rule(logits, ids, weights)
        shares = weights.clone()
        for row in (~wanted.all(1)).nonzero()[:, 0].tolist():
            own = ids[row][wanted[row]].long()[None]
            shares[row] = 0
            shares[row, wanted[row]] = self._rule.weights_of(logits[row : row + 1], own)[0].to(shares.dtype)
        return shares

    def confirm(self, output: Any) -> None:
        """Check in the first pass with another choice that the experts have computed it.

        Args:
            output: of the experts, ``[n, inputs]``.

        Raises:
            ModelError: their output is not the sum of the experts that were handed to them.
        """
        if self._check is not None:
            rows, summed = self._check
            self._check = None
            check_mixture(self._index, summed, output[rows])
            self._confirmed = True

    def _expect(self, entering: Any, ids: Any, weights: Any, changed: Any) -> None:
        if not self._confirmed:
            rows = changed.nonzero()[:ROWS, 0]
            self._check = rows, self._experts.functions.mixture(entering[rows], ids[rows], weights[rows])

    def _check_rule(self, logits: Any, ids: Any, weights: Any) -> None:
        if self._rule is None:
            return
        if logits is None:
            raise ModelError(
                f"layer {self._index}: the model did not run its router as a module, so its logits are not known; "
                "please report this model"
            )
        if not self._rule.reproduces(logits, ids, weights):
            raise ModelError(
                f"layer {self._index}: the model's weights of the experts that it chooses do not follow from its "
                f"router's logits as they did before ({self._rule.score}"
                f"{', divided by their sum' if self._rule.divided else ''}), so those of other experts are not known; "
                "please report this model"
            )

    def _subset(self, ids: Any, weights: Any, wanted: Any, own: Any) -> Any:
        """The model's own weights, 0 where an expert is left out."""
        if bool((wanted & ~own).any()):
            raise ModelError(
                f"policy {self._name}: layer {self._index}: reads experts that the model does not choose, and how its "
                "router weighs them is not known; choose a policy that only leaves experts out, such as drop-cold"
            )
        self.kept = True
        return weights * wanted.gather(1, ids.long()).to(weights.dtype)
