"""The greedy allocation of TEAL (arXiv 2408.14690): how sparse each matrix of a block becomes.

The allocation begins with a dense block. Each step removes the same number of weights, the share `STEP` of the block's,
from the matrices of one signal: those whose removal changes the block's output least. The steps do not depend on the
density, so all of them are stored, as keeps by signal, layer and step.

As in the authors' code, the error is the L2 norm of the difference over the last quarter of the tokens, as the first
tokens have huge outputs in many models. Unlike there, matrices that share an input (q, k and v; gate and up) share a
threshold.

A block is measured when the one dense pass reaches it, on the inputs that it has there. So a model that is larger than
memory is loaded only once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from hwsim.analysis.calibration import Progress, member
from hwsim.errors import ModelError, TraceError
from hwsim.model.shape import ModelShape
from hwsim.record.custom import code_provenance
from hwsim.record.extras import Libraries, libraries, require_extra, told_as
from hwsim.record.hooks import Layer
from hwsim.record.loading import find_device, find_dtype, load_model, read_structure
from hwsim.record.runner import Runner
from hwsim.record.sources import find_source, weights_hash
from hwsim.trace import Sequences, Trace
from hwsim.util.arrayfile import ArrayFile
from hwsim.util.kernels import threshold

STEP = 0.02  # share of a block's weights that a step takes
_LEAST = 0.1  # share of a block's weights that is left after the last step
_TOKENS = 256  # number of tokens that are measured
SIGNALS = ("attn_input", "attn_output", "input", "glu")


def allocate(
    model: str,
    trace: Trace,
    calibration: ArrayFile,
    *,
    device: str = "cpu",
    dtype: str = "auto",
    max_memory: int | None = None,
    trust_remote_code: bool = False,
    progress: Progress | None = None,
) -> ArrayFile:
    """Measure the greedy allocation on the first tokens of a trace.

    Args:
        model: the one that was recorded, as `hwsim.record.record` takes it.
        trace: an open trace with token ids.
        calibration: of that trace, with all four signals that are inputs of matrices.
        device: a device of torch.
        dtype: type to compute in, as for a recording.
        max_memory: bytes that weights may take; None: the free memory.
        trust_remote_code: whether code that the model brings along may run.
        progress: callback that receives (phase, steps done, steps in all).

    Returns:
        The calibration and, by layer and signal, float32 ``layers/000/SIGNAL/keeps`` ``[steps + 1]``, from 1 down.

    Raises:
        TraceError: the trace has no tokens, or lacks a signal.
        ModelError: the model is not available, or is not the one that was recorded.
    """
    tell = progress or (lambda phase, done, total: None)
    ids = _tokens(trace, calibration)
    require_extra()
    source, used = find_source(model, trust_remote_code), libraries()
    tell("loading the model", 0, 1)
    structure = read_structure(source, used)
    recorded = trace.header.provenance.get("weights", {}).get("sha256")
    shape = structure.shape.model_copy(update={"name": trace.model.name})
    weights = weights_hash(source)
    if shape != trace.model or recorded not in (None, weights):
        raise ModelError(f"--model {source.name}: is not the model that {trace.path} was recorded from; name that one")
    whole = set(shape.layers_with("attn_output")) & set(shape.layers_with("glu"))
    if lacking := sorted(set(range(shape.num_hidden_layers)) - whole):
        raise ModelError(
            f"--model {source.name}: layer {lacking[0]} has no MLP or no matrices q, k, v and o "
            f"(attention {shape.by_layer[lacking[0]].attention}), and an allocation needs both in every layer; "
            "leave --model out, which gives thresholds without one"
        )
    device = find_device(device, used.torch)
    dtype = find_dtype(dtype, device, structure)
    loaded = load_model(source, structure, used, device, dtype, max_memory)
    tell("loading the model", 1, 1)
    greedy = _Greedy(calibration, trace.model, trace.header.sequences[0].prompt, used)
    blocks, runner = loaded.model.get_submodule(structure.layers_name), Runner(loaded.model, used)
    handles = []

    def measure(index: int, module: Any, args: Any, kwargs: Any, output: Any) -> None:
        greedy.measure(index, loaded.layers[index], module, args, kwargs, output)
        tell("allocating", index + 1, len(loaded.layers))

    try:
        for index, block in enumerate(blocks):
            # before all other hooks: one of them may free the block's weights
            handles.append(block.register_forward_hook(partial(measure, index), with_kwargs=True, prepend=True))
        with told_as(f"--model {source.name}: cannot be run"):
            runner.hidden(ids[None])
    finally:
        for handle in [*handles, runner]:
            handle.remove()
    facts = {"tokens": len(ids), "step": STEP, "dtype": dtype, "torch": str(used.torch.__version__), "weights": weights}
    facts |= code_provenance(source)
    return ArrayFile(calibration.header | {"allocation": facts}, calibration.arrays | greedy.paths)


def _tokens(trace: Trace, calibration: ArrayFile) -> np.ndarray:
    """Token ids of the first sequence: its prompt and its first `_TOKENS` decoded tokens."""
    advice = f"record it anew: hwsim record --model {trace.model.name} --signals {','.join(SIGNALS)}"
    if missing_signals := [signal for signal in SIGNALS if signal not in calibration.header["signals"]]:
        raise TraceError(f"{trace.path}: lacks the signal {missing_signals[0]}, which an allocation needs; {advice}")
    ids = trace.tokens()
    if ids is None or trace.header.origin != "recorded":
        raise TraceError(f"{trace.path}: has no tokens that a model has read, which an allocation needs; {advice}")
    first = next(Sequences(trace.header.sequences).decoded())
    return ids[: first.rows[:_TOKENS].stop]


class _Greedy:
    """Measures the steps of each block from dense to sparse."""

    def __init__(self, calibration: ArrayFile, shape: ModelShape, prompt: int, used: Libraries) -> None:
        self._arrays, self._prompt, self._torch = calibration.arrays, prompt, used.torch
        sizes = {name: matrix.elements for name, matrix in shape.matrices().items()}
        entered_matrices = {
            "attn_input": ("q", "k", "v"),
            "attn_output": ("o",),
            "input": shape.mlp[:-1],
            "glu": ("down",),
        }
        weights = {signal: sum(sizes[name] for name in names) for signal, names in entered_matrices.items()}
        self._steps = {signal: STEP * sum(sizes.values()) / count for signal, count in weights.items()}
        self._limits: dict[str, float] = {}
        self.paths: dict[str, np.ndarray] = {}

    def measure(self, index: int, layer: Layer, block: Any, args: Any, kwargs: Any, output: Any) -> None:
        """Find the steps of one block from its call: `args`, `kwargs` and `output`."""
        target = _hidden(output)
        keeps = dict.fromkeys(SIGNALS, 1.0)
        path = [dict(keeps)]
        with self._cut(layer):
            for _ in range(round((1 - _LEAST) / STEP)):
                errors = {}
                for signal in SIGNALS:
                    trial = keeps | {signal: keeps[signal] - self._steps[signal]}
                    if trial[signal] >= 0:
                        self._limits = {
                            name: float(threshold(self._arrays[member(index, name, "quantiles")], keep))
                            for name, keep in trial.items()
                        }
                        errors[signal] = self._error(_hidden(block.forward(*args, **kwargs)), target)
                best = min(errors, key=errors.__getitem__)
                keeps[best] -= self._steps[best]
                path.append(dict(keeps))
        for signal in SIGNALS:
            self.paths[member(index, signal, "keeps")] = np.array([step[signal] for step in path], np.float32)

    @contextmanager
    def _cut(self, layer: Layer) -> Iterator[None]:
        """Context manager that masks the inputs of a layer's matrices at the present limits."""
        inputs = [(layer.query, "attn_input"), (layer.out, "attn_output"), (layer.up, "input"), (layer.down, "glu")]
        if not layer.fused_attention:
            inputs += [(layer.key, "attn_input"), (layer.value, "attn_input")]
        if layer.gate is not None:
            inputs.append((layer.gate, "input"))
        if any(module is None for module, _ in inputs):
            raise ModelError("hwsim does not find the projections of its attention, so no allocation can be measured")
        handles = [
            module.register_forward_pre_hook(lambda _, args, signal=signal: (self._masked(signal, args[0]), *args[1:]))
            for module, signal in inputs
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _masked(self, signal: str, values: Any) -> Any:
        mask = values.abs() > self._limits[signal]
        mask.view(-1, values.shape[-1])[: self._prompt] = True  # the prompt is read densely
        return values * mask

    def _error(self, output: Any, target: Any) -> float:
        """L2 norm of the difference over the last quarter of the decoded tokens."""
        decoded = target.shape[-2] - self._prompt
        last = slice(target.shape[-2] - max(1, decoded // 4), None)
        return float(self._torch.linalg.vector_norm((output - target)[..., last, :].double()))


def _hidden(output: Any) -> Any:
    """The hidden states in the output of a block."""
    return output[0] if isinstance(output, tuple) else output
