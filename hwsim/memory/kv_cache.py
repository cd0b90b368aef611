"""The KV cache and the fixed states of the layers: what is reserved in DRAM, and what a token reads."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hwsim.model.shape import Bits, ModelShape, stored_bytes


@dataclass(frozen=True)
class KVCache:
    """The KV cache of a model, layer by layer, and the fixed states of layers with linear attention or convolutions.

    Attributes:
        stored: bytes that a token adds in each layer.
        read: bytes of an entry that a token reads in each layer: its own, or those of the layer whose entries it uses.
        windows: most entries that a token reads in each layer, its own included; None: all.
        states: bytes of each layer's fixed state, which a token reads and writes.
        macs_per_entry: multiplications of one token's attention for each entry that it reads, by layer.
    """

    stored: tuple[int, ...]
    read: tuple[int, ...]
    windows: tuple[int | None, ...]
    states: tuple[int, ...]
    macs_per_entry: tuple[int, ...]

    @classmethod
    def of(cls, model: ModelShape, bits: Bits, window: int | None = None) -> KVCache:
        """The KV cache of a model.

        Args:
            model: shape of the model.
            bits: bits of stored numbers.
            window: most entries that a token reads in any layer, in place of the model's own windows.
        """
        layers = model.by_layer
        stored = tuple(stored_bytes(layer.kv_elements, bits.kv_cache) for layer in layers)
        read = tuple(stored[number if layer.kv_from is None else layer.kv_from] for number, layer in enumerate(layers))
        return cls(
            stored=stored,
            read=read,
            windows=tuple(layer.window if window is None else window for layer in layers),
            states=tuple(stored_bytes(layer.state_elements, bits.state) for layer in layers),
            macs_per_entry=tuple(layer.macs_per_entry for layer in layers),
        )

    @property
    def state(self) -> int:
        """Bytes of the states of all layers."""
        return sum(self.states)

    @property
    def state_traffic(self) -> int:
        """Bytes that each token reads from the states and writes to them."""
        return 2 * self.state

    def reserved(self, tokens: int) -> int:
        """Bytes of the entries of `tokens` tokens; a layer with a window holds no more than its window."""
        return sum(size * _within(tokens, window) for size, window in zip(self.stored, self.windows, strict=True))

    def lengths(self, lengths: np.ndarray) -> np.ndarray:
        """Entries that each token reads in each layer: int64 ``[tokens, layers]``.

        Args:
            lengths: entries up to each token and its own, int64 ``[tokens]``.
        """
        longest = int(lengths.max(initial=0))
        windows = np.array([longest if window is None else window for window in self.windows], np.int64)
        return np.minimum(lengths[:, None], windows)

    def by_window(self) -> dict[int | None, tuple[int, int]]:
        """For each window: bytes of an entry, and multiplications for it, summed over the layers that have it."""
        sums: dict[int | None, tuple[int, int]] = {}
        for window, size, macs in zip(self.windows, self.read, self.macs_per_entry, strict=True):
            before = sums.get(window, (0, 0))
            sums[window] = (before[0] + size, before[1] + macs)
        return sums

    def read_bytes(self, lengths: np.ndarray) -> np.ndarray:
        """Bytes of entries that each token reads in all layers: int64 ``[tokens]``; `lengths` as in `lengths`."""
        total = np.zeros(len(lengths), np.int64)
        for window, (size, _) in self.by_window().items():
            total += (lengths if window is None else np.minimum(lengths, window)) * size
        return total

    def mean_macs(self, lengths: np.ndarray) -> float:
        """Multiplications of a mean token's attention over the entries that it reads; `lengths` as in `lengths`."""
        total = 0.0
        for window, (_, macs) in self.by_window().items():
            read = lengths if window is None else np.minimum(lengths, window)
            total += float(read.mean()) * macs
        return total

    def chunk(self, start: int, end: int) -> tuple[int, int]:
        """A chunk of a prompt, tokens `start` to `end`: bytes of the entries that it reads, and multiplications.

        A chunk reads each entry once. In a layer with a window it reads the entries that its first token sees, and
        all later ones.
        """
        size = macs = 0
        for window, (entry, per_entry) in self.by_window().items():
            first = 0 if window is None else max(0, start + 1 - window)
            size += entry * (end - first)
            macs += per_entry * (_pairs(end, window) - _pairs(start, window))
        return size, macs


def _within(tokens: int, window: int | None) -> int:
    return tokens if window is None else min(tokens, window)


def _pairs(tokens: int, window: int | None) -> int:
    """Entries that the first `tokens` tokens of a sequence read, summed."""
    near = _within(tokens, window)
    return near * (near + 1) // 2 + (tokens - near) * (window or 0)
