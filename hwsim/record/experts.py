"""The experts of a loaded model: hooks on their calls and on the router, and checks of what they give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hwsim.errors import ModelError
from hwsim.model.layers import Experts
from hwsim.record.inventory import ExpertFunctions, FoundExperts
from hwsim.record.inventory.reading import CASTS, PRODUCTS
from hwsim.record.inventory.routing import find_rule

ROWS = 8  # tokens of a pass whose sum of experts is computed again
_APART = 1e-2  # relative to the largest value: ample for bfloat16, and far from another half or another expert


class LayerExperts:
    """The experts of one decoder layer.

    Args:
        layer: the decoder layer.
        found: its experts in the inventory.

    Attributes:
        module: module that is called with what enters the experts, the ids of the chosen ones, and their weights.
        shape: number of experts, width, and so on.
        functions: gate, up, glu and down of one expert, and the sum of all that are chosen.
        sure: whether the structure of the model shows which matrix is the router's; otherwise `check_router` must.
    """

    def __init__(self, layer: Any, found: FoundExperts) -> None:
        self.module, self.shape = layer.get_submodule(found.module), found.shape
        self.functions = ExpertFunctions(self.module, found.weights)
        self.sure, self._places = found.alone, found.places
        self._router_module = layer.get_submodule(found.router_module)
        # a router may hold its matrix in a module of its own
        around = layer.get_submodule(found.router_module.rpartition(".")[0])
        inside = any(module is self.module for module in around.modules())
        self._router_block = self._router_module if inside else around
        self._router_weight = found.router.removeprefix(f"{found.router_module}." if found.router_module else "")

    def before(self, action: Callable[[Any, Any, Any], tuple[Any, Any, Any] | None]) -> Any:
        """Call `action` before the experts run; returns the handle of the hook.

        Args:
            action: receives what enters the experts, ``[n, inputs]``, ids, integers ``[n, k]``, and weights,
                ``[n, k]``, as the model gives them. Three other tensors that it returns are used in their place. A
                chosen expert that shall be left out keeps its id and gets the weight 0.
        """

        def hook(_: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
            given = [args[place] for place in self._places]
            changed = action(given[0].reshape(-1, given[0].shape[-1]), given[1], given[2])
            if changed is None:
                return None
            new: list[Any] = list(args)
            for place, old, value in zip(self._places, given, changed, strict=True):
                new[place] = value.reshape(old.shape) if old is given[0] else value
            return tuple(new)

        return self.module.register_forward_pre_hook(hook)

    def after(self, action: Callable[[Any], None]) -> Any:
        """Pass the output of the experts, ``[n, inputs]``, to `action`; returns the handle of the hook."""
        return self.module.register_forward_hook(lambda _, __, result: action(result.reshape(-1, result.shape[-1])))

    def replace(self, action: Callable[[Any], Any]) -> Any:
        """Replace the output of the experts, ``[n, inputs]``, by what `action` returns; returns the hook's handle."""

        def hook(_: Any, __: Any, result: Any) -> Any:
            return action(result.reshape(-1, result.shape[-1])).reshape(result.shape)

        return self.module.register_forward_hook(hook)

    def scales(self) -> list[Any]:
        """Vectors with a number for each expert in the router, each of which may scale the experts' weights."""
        return [
            parameter.detach()
            for parameter in self._router_block.parameters()
            if parameter.ndim == 1 and parameter.numel() == self.shape.count
        ]

    def watch_router(
        self, action: Callable[[Any], None], again: Callable[[Callable[[Any], Any]], None] | None = None
    ) -> list[Any]:
        """Pass the router's logits, ``[n, experts]``, to `action` before the experts run; returns handles of hooks.

        They are the result of the product with the router's matrix, its bias included, before softmax or sigmoid,
        and before a correction that only changes which experts are chosen.

        Args:
            action: receives the logits.
            again: receives a function that returns the logits for other inputs of the product, ``[n, inputs]``; it is
                called right after `action`, while the weights are there.
        """
        running: list[Any] = []

        def enter(module: Any, _: Any) -> None:
            running.append(_product_mode(module.get_parameter(self._router_weight)))
            running[-1].__enter__()

        def leave(*_: Any) -> None:
            if running:
                mode = running.pop()
                mode.__exit__(None, None, None)
                if mode.result is not None:
                    action(mode.result.reshape(-1, mode.result.shape[-1]))
                    if again is not None:
                        again(mode.repeat)

        return [
            self._router_module.register_forward_pre_hook(enter),
            self._router_module.register_forward_hook(leave, always_call=True),
        ]


def _product_mode(weight: Any) -> Any:
    """A mode of torch that keeps the result of the product with a matrix, or with a copy of it in another type."""
    import torch

    class Product(torch.overrides.TorchFunctionMode):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.result: Any = None
            self._same = [weight]
            self._product: tuple[Any, list[Any], dict[str, Any]] | None = None

        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = function(*args, **(kwargs or {}))
            operation = getattr(function, "__name__", "")
            if operation in PRODUCTS or operation in CASTS or operation in ("t", "transpose"):
                given = [*args, *(kwargs or {}).values()]
                if any(self._is_weight(entry) for entry in given):
                    if operation in PRODUCTS:
                        self.result = result
                        self._product = function, list(args), dict(kwargs or {})
                    else:
                        self._same.append(result)
            return result

        def repeat(self, inputs: Any) -> Any:
            """The same product with other inputs, ``[n, inputs]``: ``[n, experts]``."""
            assert self._product is not None
            function, args, kwargs = self._product

            def replaced(entry: Any) -> Any:
                is_input = isinstance(entry, torch.Tensor) and entry.ndim > 1 and not self._is_weight(entry)
                return inputs.to(entry) if is_input else entry

            result = function(
                *[replaced(entry) for entry in args], **{name: replaced(entry) for name, entry in kwargs.items()}
            )
            return result.reshape(-1, result.shape[-1])

        def _is_weight(self, entry: Any) -> bool:
            return any(entry is other for other in self._same)

    return Product()


def check_chosen(layer: int, ids: Any, shape: Experts) -> None:
    """Check that every token has chosen `Experts.used` different experts.

    Args:
        layer: its number.
        ids: the chosen experts, integers ``[n, k]``.
        shape: of the layer's experts.

    Raises:
        ModelError: it has not.
    """
    ordered = ids.sort(-1).values
    twice = bool((ordered[:, 1:] == ordered[:, :-1]).any())
    if ids.shape[-1] != shape.used or twice or int(ids.min()) < 0 or int(ids.max()) >= shape.count:
        raise ModelError(
            f"layer {layer}: the router chose {ids.shape[-1]} experts from {int(ids.min())} to {int(ids.max())}"
            f"{', some of them twice' if twice else ''}; hwsim knows {shape.used} different ones of {shape.count}; "
            "please report this model"
        )


def check_router(layer: int, experts: LayerExperts, logits: Any, ids: Any, weights: Any) -> None:
    """Check that the weights of the chosen experts follow from the logits by a rule, where the structure is not enough.

    Args:
        layer: its number.
        experts: of the layer.
        logits: ``[n, experts]``; None: the router did not run.
        ids, weights: of the chosen experts, ``[n, k]``.

    Raises:
        ModelError: they do not.
    """
    if experts.sure or (logits is not None and find_rule(logits, ids, weights, experts.scales()) is not None):
        return
    raise ModelError(
        f"layer {layer}: several matrices have a result for each of the {experts.shape.count} experts, and no rule "
        "that hwsim knows gives the experts' weights from the last one, so which is the router's is not known; leave "
        "router out of --signals"
    )


def check_mixture(layer: int, computed: Any, output: Any) -> None:
    """Check that the sum of the chosen experts is what their module returned.

    Args:
        layer: its number.
        computed: sum of weights x down(glu), ``[n, inputs]``.
        output: of the module.

    Raises:
        ModelError: they differ by more than a rounding.
    """
    apart, size = float((computed.float() - output.float()).abs().max()), float(output.float().abs().max())
    if not apart <= _APART * size:
        raise ModelError(
            f"layer {layer}: the sum of weights x outputs of the chosen experts is not what the model computes; its "
            "experts are not those that hwsim takes them for; please report this model"
        )


def by_weight(ids: Any, weights: Any) -> tuple[Any, Any, Any]:
    """The chosen experts by falling weight; equal weights stay in the router's order.

    Args:
        ids: integers ``[n, k]``.
        weights: ``[n, k]``.

    Returns:
        Ids, weights, and the places that they had, each ``[n, k]``.
    """
    order = weights.float().argsort(dim=-1, descending=True, stable=True)
    return ids.gather(-1, order), weights.gather(-1, order), order
