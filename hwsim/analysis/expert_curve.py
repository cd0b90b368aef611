"""The hit rate of caches of experts by their size: each size is counted as a replay counts it.

Stack distances do not apply. A cache of experts admits whole events in exact bytes, prompts go through it, and it may
serve many layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from hwsim.masking.counts import Counts
from hwsim.memory.groups import Plans


@dataclass(frozen=True)
class SizeHits:
    """What caches of one size find.

    Attributes:
        requests: units that decoded steps need.
        hits: those of them that were cached.
        miss_bytes: bytes of the others.
        demand: bytes that decoded steps need.
        steps: decoded steps.
        prompt_requests: units that steps of prompts need; 0 if prompts do not go through the caches.
        prompt_hits: those of them that were cached.
    """

    requests: int
    hits: int
    miss_bytes: int
    demand: int
    steps: int
    prompt_requests: int = 0
    prompt_hits: int = 0

    @property
    def rate(self) -> float:
        """Hit rate of decoding."""
        return self.hits / max(1, self.requests)

    @property
    def prompt_rate(self) -> float | None:
        """Hit rate of the prompts; None if they do not go through the caches."""
        return self.prompt_hits / self.prompt_requests if self.prompt_requests else None


def curve_by_size(
    counts_of: Callable[[int], Counts], sizes: Iterable[int], plans: Plans,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, SizeHits]:  # fmt: skip
    """Count the hits of caches of several sizes.

    Args:
        counts_of: makes the counts of a replay whose caches hold so many bytes together.
        sizes: bytes of all caches together.
        plans: the groups.
        progress: callback that receives the sizes done and their number.

    Returns:
        What the caches find, by their bytes, rising.
    """
    ordered = sorted(set(sizes))
    curve = {}
    for number, size in enumerate(ordered, 1):
        counts = counts_of(size)
        missed = int(counts.miss_bytes(plans).sum())
        prompt = counts.prompt
        curve[size] = SizeHits(
            requests=int(counts.requests.sum()),
            hits=int(counts.hits.sum()),
            miss_bytes=missed,
            demand=missed + int(counts.hit_bytes(plans).sum()),
            steps=counts.tokens,
            prompt_requests=0 if prompt is None else int(prompt.requests.sum()),
            prompt_hits=0 if prompt is None else int(prompt.hits.sum()),
        )
        if progress:
            progress(number, len(ordered))
    return curve
