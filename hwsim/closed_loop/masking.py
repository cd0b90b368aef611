"""The closed loop: masks are decided from signals of a running model and applied to it, with the cache in the loop.

The mask of layer l at token t depends on the cache of layer l after token t-1 and on the inputs of layer l at token t;
the inputs are known for all tokens once layer l-1 is done. So a whole window goes through the model at once, layer by
layer: when a signal is computed, the scan of `hwsim.masking.scan` decides the masks of all tokens, and the matrices
that follow see the signal masked. Columns are masked by zeroing inputs of attention and MLP; rows of gate and up by
zeroing entries of their product, which gives the same as skipping the row; the product is the GLU itself unless a norm
lies between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from hwsim.errors import ModelError
from hwsim.masking.counts import Counts, Served
from hwsim.masking.decider import Block
from hwsim.masking.observers import Observer
from hwsim.masking.scan import SharedCaches, Tally, saved_streams
from hwsim.masking.streams import Masking, PolicyStream
from hwsim.memory.groups import GroupPlan, Place, Plans
from hwsim.model.shape import NORMS
from hwsim.record.hooks import Layer, check_plain, check_product, first
from hwsim.trace import Sequence
from hwsim.trace.sequences import Decoded, Sequences
from hwsim.util.kernels import read_only

# the points of a layer at which masks are decided, in the order in which a pass reaches them; the first point at which
# each signal is known; and the last point at which each slice can be masked
_QKV, _OUT, _UP, _PRODUCT, _DOWN = range(5)
_KNOWN = {"attn_input": _QKV, "attn_output": _OUT, "input": _UP, "up": _PRODUCT, "gate": _PRODUCT, "glu": _DOWN}
_MASKED = {
    "q.column": _QKV, "k.column": _QKV, "v.column": _QKV, "o.column": _OUT, "gate.column": _UP, "up.column": _UP,
    "gate.row": _DOWN, "up.row": _DOWN, "down.column": _DOWN, "down.row": _DOWN,
}  # fmt: skip
_ROWS = ("gate.row", "up.row")  # masked before the inner norm of an MLP that has one


class ClosedLoop:
    """A policy and its caches, which inside the context are attached to the layers of a running model.

    Args:
        layers: layers of the model, from `hwsim.record.hooks.layers_of`.
        masking: the policy and its caches.
        observers: receive every mask.
        steps: whether each pass has one token, so that a policy may read shared caches.
        fast: whether to use the compiled scan if policy and caches allow it; it decides the same.
        token: number of the first decoded token, for the observers.

    Raises:
        ModelError: the policy cuts something that cannot be masked in a running model.
        SettingError: the eviction cannot serve a shared cache.
    """

    def __init__(
        self, layers: list[Layer], masking: Masking, observers: Iterable[Observer] = (), *, steps: bool = False,
        fast: bool = False, token: int = 0,
    ) -> None:  # fmt: skip
        self._all_layers, self._masking, self._observers = layers, masking, tuple(observers)
        plans, shared = masking.plans, masking.shared
        for layer, groups in zip(layers, plans.by_layer, strict=True):
            _check(groups, layer, masking.name)
        self._attention = _attention(plans)
        first = _QKV if self._attention else _UP  # the point at which groups without signals are decided
        points = [
            [_point(plan, first, layer) for plan in groups]
            for groups, layer in zip(plans.by_layer, layers, strict=True)
        ]
        self._caches = SharedCaches(masking) if shared else None
        self._later = shared is not None and not steps
        blind = ""
        if shared and steps:
            for groups, order in zip(plans.by_layer, points, strict=True):
                _check_order(groups, order, masking.name)
        elif shared:  # the masks of a whole window are decided before a cache serves them
            blind = (
                f"--cache-scope {shared.scope} couples groups that are decided here one after the other for all "
                "tokens; choose matrix, or read a text"
            )
        self._streams: list[list[tuple[Place, PolicyStream]]] = [[] for _ in layers]
        self._at: list[list[list[int]]] = [[[] for _ in range(5)] for _ in layers]  # slots by layer and point
        for place in plans.places():
            part = self._caches.part(place) if self._caches and steps else None
            stream = PolicyStream(masking, place, cache=part, blind=blind, fast=fast)
            self._streams[place.layer].append((place, stream))
            self._at[place.layer][points[place.layer][place.slot]].append(place.slot)
        self._first, self._token = 0, token
        self._fresh = True
        self._sequences, self._tally = Sequences([]), Tally(Counts.none(0, plans))
        self._units: dict[Place, np.ndarray] = {}  # packed masks that shared caches serve later
        self._current = -1  # the layer that runs
        self._ran: set[int] = set()  # layers that the pass has reached
        self._confirmed: set[int] = set()  # layers whose up and gate were seen to make what enters the next module
        self._signals: dict[str, Any] = {}  # of the current layer
        self._masks: dict[str, Any] = {}  # by slice, of the current layer: bool [tokens, indices]
        self._norms: dict[tuple[int, str], np.ndarray] = {}  # by layer and name, once they were needed
        self._handles: list[Any] = []
        self._layers = layers if plans else []

    def __enter__(self) -> ClosedLoop:
        """Attach the hooks to the model."""
        self._current = -1
        for index, layer in enumerate(self._layers):
            if self._masking.plans[index]:
                self._attach(index, layer)
        return self

    def __exit__(self, *error: object) -> None:
        """Detach the hooks from the model."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def by_token(self) -> ClosedLoop:
        """A closed loop that continues from here with one token in each pass.

        Raises:
            ModelError: the policy's groups have another order than a layer decides them in.
        """
        return ClosedLoop(self._all_layers, self._masking, self._observers, steps=True, token=self._token)

    def window(self, sequences: list[Sequence], first: int) -> None:
        """Announce a pass over whole sequences; `first` is the number of the first of them."""
        self._first, self._fresh = first, True
        self._begin_pass(sequences)

    def begin(self, number: int) -> None:
        """Begin sequence `number`, whose passes are announced piece by piece with `continued`."""
        if self._caches:
            self._caches.start()
        for streams in self._streams:
            for _, stream in streams:
                stream.begin(number)

    def continued(self, tokens: int) -> None:
        """Announce a pass over `tokens` more tokens of the current sequence."""
        self._fresh = False
        self._begin_pass([Sequence(tokens=tokens)])

    def counts(self) -> Counts:
        """Return requests and hits of the last pass.

        Raises:
            ModelError: the model did not run a layer that has groups, so its masks were not decided.
        """
        missed = [
            index for index, groups in enumerate(self._masking.plans.by_layer) if groups and index not in self._ran
        ]
        if missed and self._sequences.tokens:
            raise ModelError(
                f"layer {missed[0]}: the model did not run its MLP, so no mask was decided there; it runs other "
                "modules than hwsim takes for its layers; please report this model"
            )
        if self._caches and self._units:
            self._serve_later(self._caches)
        return self._tally.counts

    def _begin_pass(self, sequences: list[Sequence]) -> None:
        self._token += self._tally.counts.tokens  # tokens of the pass before
        self._current = -1
        self._ran = set()
        self._sequences = Sequences(sequences)
        counts = Counts.none(self._sequences.decoded_tokens, self._masking.plans)
        self._tally = Tally(counts, self._observers, self._token)
        self._units = {}

    def _serve_later(self, caches: SharedCaches) -> None:
        """Serve the masks of the last pass from shared caches."""
        masks, self._units = self._units, {}
        make = saved_streams(lambda place: masks[place], self._masking)
        for number, places in enumerate(caches.rounds):
            streams = {place: make(place, caches.part(place)) for place in places}
            for sequence in self._sequences.decoded():
                if self._fresh:
                    caches.start(number)
                served = {place: stream.serve(sequence) for place, stream in streams.items()}
                for _ in self._tally.drive_shared(served, sequence.tokens):
                    pass

    # ------------------------------------------------------------------ hooks

    def _attach(self, index: int, layer: Layer) -> None:
        def before(module: Any, action: Callable[[Any], Any]) -> None:
            self._handles.append(
                module.register_forward_pre_hook(lambda module, args: (action(first(module, args)), *args[1:]))
            )

        def after(module: Any, action: Callable[[Any], Any]) -> None:
            self._handles.append(module.register_forward_hook(lambda _, __, result: action(result)))

        if self._attention:
            before(layer.query, lambda x: self._reach(index, _QKV, "attn_input", x, "q.column"))
            if not layer.fused_attention:
                before(layer.key, lambda x: self._reach(index, _QKV, "attn_input", x, "k.column"))
                before(layer.value, lambda x: self._reach(index, _QKV, "attn_input", x, "v.column"))
            before(layer.out, lambda x: self._reach(index, _OUT, "attn_output", x, "o.column"))
        before(layer.up, lambda x: self._reach(index, _UP, "input", x, "up.column"))
        if layer.gate is not None:
            before(layer.gate, lambda x: self._reach(index, _UP, "input", x, "gate.column"))
        if self._masking.plans.needs() & {"up", "gate"}:
            self._handles += layer.watch(lambda name, value: self._signals.update({name: value}))
        if layer.mlp is not None and layer.mlp.unseen:
            self._handles.append(layer.up.register_forward_hook(lambda _, __, y: self._signals.update(raw=y)))
        if layer.inner is not None:
            before(layer.inner, lambda x: self._reach(index, _PRODUCT, "product", x, *_ROWS))
            before(layer.down, lambda x: self._reach(index, _DOWN, "glu", x, "down.column"))
        else:
            before(layer.down, lambda x: self._down(index, x))
        after(layer.down, lambda y: self._masked("down.row", y))

    def _reach(self, index: int, point: int, signal: str, values: Any, *slices: str) -> Any:
        """Hook before a module: decide the groups of this point once, and return the masked input."""
        if index != self._current:
            self._current, self._signals, self._masks = index, {}, {}
            self._ran.add(index)
        if signal not in self._signals:
            self._signals[signal] = values
            if point == _PRODUCT:
                self._confirm(index, values)
            for slot in self._at[index][point]:
                self._decide(index, slot, values)
        for name in slices:
            values = self._masked(name, values)
        return values

    def _down(self, index: int, values: Any) -> Any:
        """Hook before down, if what enters it is the product of gate and up itself."""
        self._reach(index, _PRODUCT, "product", values)
        return self._reach(index, _DOWN, "glu", values, *_ROWS, "down.column")

    def _confirm(self, index: int, product: Any) -> None:
        """Check in the first pass that up and gate, if masks are decided from them, make the product."""
        if index not in self._confirmed and "raw" in self._signals:
            check_plain(index, self._signals["raw"], product)
            self._confirmed.add(index)
        if index not in self._confirmed and self._signals.keys() & {"up", "gate"}:
            check_product(index, self._signals.get("up"), self._signals.get("gate"), product)
            self._confirmed.add(index)

    def _masked(self, name: str, values: Any) -> Any:
        mask = self._masks.get(name)
        return values if mask is None else values * mask.view(values.shape)

    # ------------------------------------------------------------------ masks

    def _decide(self, layer: int, slot: int, like: Any) -> None:
        group = self._masking.plans[layer][slot].group
        arrays = {signal: _array(self._signals[signal]) for signal in group.needs if signal not in NORMS}
        norms = {name: self._norm(layer, name) for name in group.needs if name in NORMS}
        masks = self._scan(layer, slot, arrays, norms).astype(np.float32)  # numpy converts seven times faster
        self._masks |= dict.fromkeys(group.slices, like.new_tensor(masks))  # in the model's dtype, for multiplication

    def _norm(self, layer: int, name: str) -> np.ndarray:
        """Norms of the running model's weights, float32 ``[indices]``, read-only."""
        if (layer, name) not in self._norms:
            self._norms[layer, name] = read_only(self._layers[layer].norm(name))
        return self._norms[layer, name]

    def _scan(self, layer: int, slot: int, arrays: dict[str, np.ndarray], norms: dict[str, np.ndarray]) -> np.ndarray:
        """Masks of all tokens, bool ``[tokens, indices]``; masks of prompts are full."""
        place, stream = self._streams[layer][slot]
        masks = np.ones((self._sequences.tokens, place.plan.indices), bool)
        if self._later:
            shape = (self._sequences.decoded_tokens, -(-place.plan.units // 8))
            self._units[place] = np.zeros(shape, np.uint8)
        for sequence in self._sequences.decoded():
            if self._fresh:
                stream.begin(self._first + sequence.number)
            rows = slice(sequence.rows.start, sequence.rows.stop)
            block = Block({signal: values[rows] for signal, values in arrays.items()}, norms, len(sequence.rows))
            if self._later:
                self._decide_early(place, stream, block, sequence, masks[rows])
            else:
                self._tally.drive(place, sequence, _kept(stream.run([block]), masks[rows]))
        return masks

    def _decide_early(
        self, place: Place, stream: PolicyStream, block: Block, sequence: Decoded, masks: np.ndarray
    ) -> None:
        """Decide masks that a shared cache serves later, and write them to `masks`, bool ``[tokens, indices]``."""
        for at, row in enumerate(block.rows()):
            units = stream.decide(row)
            self._units[place][sequence.tokens.start + at] = np.packbits(units)
            masks[at] = stream.expand(units)


def _kept(served: Iterable[Served], masks: np.ndarray) -> Iterator[Served]:
    """Yield what was served, and write its masks to `masks`, bool ``[tokens, indices]``."""
    at = 0
    for part in served:
        masks[at : at + len(part.masks)] = part.masks
        at += len(part.masks)
        yield part


def _array(values: Any) -> np.ndarray:
    """A signal as policies see it: float32 ``[tokens, width]``, read-only."""
    array: np.ndarray = values.detach().reshape(-1, values.shape[-1]).float().cpu().numpy().copy()
    array.flags.writeable = False
    return array


def _check_order(plans: tuple[GroupPlan, ...], points: list[int], name: str) -> None:
    """Refuse groups that the running model decides in another order than a device requests them from a shared cache."""
    if points != sorted(points):
        names = ", ".join(plan.name for plan in plans)
        raise ModelError(
            f"policy {name}: with a shared cache, groups must come in the order in which a layer knows what they need "
            f"(attn_input, attn_output, input, then up, gate and glu); it is {names}; change it, or choose "
            "--cache-scope matrix"
        )


def _known(plan: GroupPlan, first: int) -> int:
    """The point at which all signals that a group needs are known; `first` if it needs none."""
    return max((_KNOWN[signal] for signal in plan.group.needs if signal not in NORMS), default=first)


def _point(plan: GroupPlan, first: int, layer: Layer) -> int:
    """The point of a layer at which a group is decided."""
    known = _known(plan, first)
    return _DOWN if known == _PRODUCT and layer.inner is None else known


def _attention(plans: Plans) -> bool:
    """Whether a group cuts attention or needs its signals."""
    points = [_KNOWN[signal] for plan in plans for signal in plan.group.needs if signal not in NORMS]
    points += [_MASKED[name] for plan in plans for name in plan.group.slices]
    return any(point < _UP for point in points)


def _check(plans: tuple[GroupPlan, ...], layer: Layer, name: str) -> None:
    """Refuse groups that the hooks cannot mask."""
    masked = _MASKED | (dict.fromkeys(_ROWS, _PRODUCT) if layer.inner is not None else {})
    for plan in plans:
        cut, needs = plan.group.slices, plan.group.needs
        if not layer.gated and {"up", "gate"} & set(needs):
            raise ModelError(f"policy {name}: needs up or gate; a model without a gate has input and glu only")
        if layer.mlp and not layer.mlp.known and ({"up", "gate"} & set(needs) or set(_ROWS) & set(cut)):
            raise ModelError(
                f"policy {name}: layer {plan.layer}: {layer.mlp.up}: {layer.mlp.why}, so rows of gate and up cannot "
                "be masked; choose a policy that cuts columns, such as dip"
            )
        if rows := sorted(slice_name for slice_name in cut if slice_name not in _MASKED):
            raise ModelError(f"policy {name}: cuts {rows[0]}; of attention, the closed loop masks columns only")
        if early := sorted(slice_name for slice_name in cut if masked[slice_name] < _known(plan, _QKV)):
            raise ModelError(
                f"policy {name}: decides {early[0]} from {', '.join(needs)}, which the running "
                "model knows only after that matrix; such an oracle can be replayed, not run"
            )
        for fused, columns in (
            (layer.fused, ["gate.column", "up.column"]),
            (layer.fused_attention, ["q.column", "k.column", "v.column"]),
        ):
            if fused and 0 < len(set(columns) & set(cut)) < len(columns):
                alone = next(slice_name for slice_name in columns if slice_name in cut)
                stored = ", ".join(slice_name.partition(".")[0] for slice_name in columns)
                raise ModelError(f"policy {name}: cuts {alone} alone, but this model stores {stored} as one matrix")
    if _attention(Plans((plans,))) and None in (layer.query, layer.key, layer.value, layer.out):
        raise ModelError(f"policy {name}: works on attention, whose projections hwsim does not find in this model")
