"""Writing a synthetic trace: every signal of every layer is drawn on its own, in blocks of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

import hwsim
from hwsim.errors import SettingError, TraceError, did_you_mean
from hwsim.model.shape import SIGNALS, ModelShape
from hwsim.trace import Sequence, Sequences, Trace, TraceHeader, TraceWriter
from hwsim.trace.synth import law
from hwsim.trace.synth.fit import RANKS, SHARES, Fitter, Progress, SignalFit, bundled
from hwsim.trace.writer import unfinished
from hwsim.util.files import check_new_file, spare

_MOST_TOKENS, _MOST_SEQUENCES = 10**9, 10**6
_BLOCK = 2**20  # values drawn at once
# y is looked up by the leading bits of its float32: 2,048 steps for each power of two, as fine as float16
_SHIFT = 12
_LOWEST, _OCTAVES = -16, 48
_LOPSIDED = 0.1  # signs are taken from z alone where pluses and minuses are even to within this much


class Windows(NamedTuple):
    """How the tokens of a trace fall into sequences.

    Attributes:
        tokens: in all.
        context: tokens of one sequence; None: all. The last one takes what is left.
        prompt: first tokens of each sequence that are its prompt.
    """

    tokens: int
    context: int | None = None
    prompt: int = 0


def synthesize(
    path: str | Path,
    model: ModelShape,
    tokens: int | Windows,
    *,
    like: Trace | None = None,
    signals: Iterable[str] | None = None,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> TraceHeader:
    """Write a synthetic trace. The same arguments give the same bytes.

    Args:
        path: the file; it is replaced when the new one is complete.
        model: shape of the model.
        tokens: tokens in all, one sequence; or how they fall into sequences.
        like: a recorded trace whose statistics to take, layer by layer at equal relative depth; the bundled sample of
            SmolLM2-135M by default.
        signals: what to write; what `like` has by default, and glu in place of up and gate for a model whose glu is not
            their product. ``up`` and ``gate`` are drawn independently of each other.
        seed: of the random numbers.
        overwrite: write also where a recording was begun and not finished.
        progress: called as f(what, done, total).

    Returns:
        The header of the trace.

    Raises:
        SettingError: a setting is out of bounds.
        ModelError: the model, or that of `like`, is a mixture of experts.
        TraceError: `like` lacks a signal, or is too short to be fitted.
        OutputError: the file cannot be written.
    """
    if like is None:
        with Trace(bundled()) as found:
            return synthesize(
                path, model, tokens, like=found, signals=signals, seed=seed, overwrite=overwrite, progress=progress
            )  # fmt: skip
    for shape in (model, like.model):
        shape.check_dense("a synthetic trace")
    path = Path(path)
    check_new_file(path)
    for target in (path, *unfinished(path)):
        spare(target, [like.path])
    wanted = _signals(signals, model, like)
    header = TraceHeader.model_validate(
        {
            "origin": "synthetic",
            "model": model,
            "signals": wanted,
            "sequences": _sequences(*(tokens if isinstance(tokens, Windows) else Windows(tokens))),
            "provenance": {
                "hwsim": hwsim.__version__,
                "numpy": np.__version__,
                "seed": seed,
                "fitted_to": {
                    "name": like.path.name,
                    "hash": like.hash,
                    "origin": like.header.origin,
                    "model": like.model.name,
                    "tokens": like.header.tokens,
                },
            },
        }
    )
    fitter = Fitter(like)
    steps, done = model.num_hidden_layers * len(wanted), 0
    with TraceWriter(path, header, overwrite=overwrite) as writer:
        try:
            # the law is drawn in order, so an interrupted file cannot be gone on with: begin again
            for layer in range(model.num_hidden_layers):
                for signal in wanted:
                    if width := model.signal_width(signal, layer):
                        fit = fitter.at(layer / max(1, model.num_hidden_layers - 1), signal)
                        _write(writer, layer, signal, Stream(seed, layer, signal, width, fit))
                    done += 1
                    if progress:
                        progress("drawing", done, steps)
            if progress:
                progress("checksums", 0, 1)
            writer.commit(header.tokens)
            writer.finish()
            if progress:
                progress("checksums", 1, 1)
        except BaseException:
            writer.discard()
            raise
    return header


def _signals(asked: Iterable[str] | None, model: ModelShape, like: Trace) -> list[str]:
    if asked is None:
        wanted: list[str] = list(like.header.signals)
        if not model.gated or model.inner_norm:  # glu is not the product of up and gate
            wanted = ["glu" if name in ("up", "gate") else name for name in wanted]
        return list(dict.fromkeys(wanted))
    wanted = list(asked)
    for name in wanted:
        if name not in SIGNALS:
            raise SettingError(f"signal {name!r} is unknown{did_you_mean(name, SIGNALS)}")
    if not wanted or len(set(wanted)) < len(wanted):
        raise SettingError(f"signals {','.join(wanted) or '(none)'}: name each signal once, and at least one")
    if not model.gated and {"up", "gate"} & set(wanted):
        raise SettingError(f"signals {','.join(wanted)}: {model.name} has no gate; it has input and glu only")
    missing = [name for name in wanted if not like.has(name)]
    if missing:
        raise TraceError(
            f"{like.path}: has no signal {missing[0]!r} to fit to, only {', '.join(like.header.signals)}; record one "
            f"with `hwsim record --signals {','.join(wanted)}` and name it with --like"
        )
    return wanted


def _sequences(tokens: int, context: int | None, prompt: int) -> list[Sequence]:
    context = tokens if context is None else context
    for name, value, least in (("tokens", tokens, 1), ("context", context, 1), ("prompt", prompt, 0)):
        if value < least:
            raise SettingError(f"{name} {value}: must be at least {least}")
    if tokens > _MOST_TOKENS:
        raise SettingError(f"tokens {tokens}: must be at most {_MOST_TOKENS}")
    if -(-tokens // context) > _MOST_SEQUENCES:
        raise SettingError(f"context {context}: cuts {tokens} tokens into over {_MOST_SEQUENCES} windows; give more")
    lengths = [min(context, tokens - start) for start in range(0, tokens, context)]
    if prompt >= lengths[-1]:
        raise SettingError(
            f"prompt {prompt}: leaves nothing to decode of the shortest sequence, {lengths[-1]} tokens; "
            "give a shorter prompt, or make the tokens a multiple of the context"
        )
    return [Sequence(tokens=length, prompt=prompt) for length in lengths]


def _write(writer: TraceWriter, layer: int, signal: str, stream: Stream) -> None:
    starts = np.zeros(writer.header.tokens, bool)
    starts[Sequences(writer.header.sequences).first_rows] = True
    step = max(1, _BLOCK // stream.width)
    for start in range(0, len(starts), step):
        writer.write(layer, signal, start, stream.draw(starts[start : start + step]))


class Stream:
    """One signal of one layer, token after token; how many tokens are drawn at once makes no difference.

    Args:
        seed: of the trace.
        layer: which layer.
        signal: which signal.
        width: its units.
        fit: its law.

    Attributes:
        width: its units.
    """

    def __init__(self, seed: int, layer: int, signal: str, width: int, fit: SignalFit) -> None:
        self.width, self._fit = width, fit
        units, values, sizes = (
            np.random.Generator(np.random.Philox(np.random.SeedSequence([seed, layer, use, *signal.encode()])))
            for use in range(3)
        )
        self._values, self._sizes = values, sizes
        # evenly spaced scales in random order: as unequal in a narrow model as in a wide one
        self._scales = units.permutation(law.scales(width, fit.spread)).astype(np.float32)
        self._table, self._positive = _tables(fit, width)
        self._z = np.zeros(width, np.float32)
        self._size = 0.0

    def draw(self, starts: np.ndarray) -> np.ndarray:
        """The next tokens: `starts`, bool ``[tokens]``, says which begin a sequence -> float32 ``[tokens, width]``."""
        count = len(starts)
        z = self._values.standard_normal((count, self.width), dtype=np.float32)
        own = np.float32(math.sqrt(1 - self._fit.rho**2))
        rho = np.float32(self._fit.rho)
        for token in np.flatnonzero(~starts):
            z[token] *= own
            z[token] += rho * (z[token - 1] if token else self._z)
        self._z = z[-1].copy()
        index = (np.abs(z) * self._scales).view(np.int32)
        index >>= _SHIFT
        index -= _first_index()
        # what lies beyond the table's ends takes its ends
        values = np.take(self._table, index, mode="clip")
        values *= self._token_sizes(starts)[:, None]
        if self._positive is None:
            return np.copysign(values, z, out=values)
        return self._signed(values, z, np.take(self._positive, index, mode="clip"))

    def _token_sizes(self, starts: np.ndarray) -> np.ndarray:
        fit, sizes = self._fit, np.empty(len(starts))
        own = math.sqrt(1 - fit.size_rho**2)
        for token, (first, fresh) in enumerate(zip(starts, self._sizes.standard_normal(len(starts)), strict=True)):
            self._size = float(fresh) if first else fit.size_rho * self._size + own * float(fresh)
            sizes[token] = self._size
        return np.exp(np.interp(1 - law.upper(sizes), SHARES, fit.sizes)).astype(np.float32)

    @staticmethod
    def _signed(values: np.ndarray, z: np.ndarray, positive: np.ndarray) -> np.ndarray:
        """Give signs: z's own, turned over just so often that a share `positive` comes out positive."""
        # the last bits of z are as good as random, and independent of its leading ones
        coin = (z.view(np.int32) & 0xFFF).astype(np.float32) / 0x1000
        lean = 2 * positive - 1
        above = np.where(coin < np.abs(lean), lean > 0, z > 0)
        return np.where(above, values, -values)


def _first_index() -> int:
    return int(np.array(2.0**_LOWEST, np.float32).view(np.int32)) >> _SHIFT


def _tables(fit: SignalFit, units: int) -> tuple[np.ndarray, np.ndarray | None]:
    """By the leading bits of y: the magnitude, float32, and the probability of a plus if that is not even."""
    steps = _OCTAVES << (23 - _SHIFT)
    bits = (np.arange(steps, dtype=np.int32) + _first_index() << _SHIFT) + (1 << (_SHIFT - 1))
    above = law.exceed(bits.view(np.float32).astype(np.float64), units, fit.spread)
    odds = np.log(np.maximum(1 - above, 1e-12)) - np.log(above)
    table = np.exp(np.interp(odds, RANKS, fit.log_magnitude)).astype(np.float32)
    table[table < 2e-9] = 0.0  # what stood for zero
    if np.abs(2 * fit.positive - 1) @ np.gradient(1 / (1 + np.exp(-RANKS))) < _LOPSIDED:
        return table, None
    return table, np.interp(odds, RANKS, fit.positive).astype(np.float32)
