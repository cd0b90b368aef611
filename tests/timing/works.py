"""Work for the engine, made up."""

import numpy as np
from hypothesis import strategies as st

from hwsim.timing.work import Work


def make(tokens=2, layers=1, groups=1, **seconds):
    """Work in which everything that is named takes so many seconds in each step, and nothing else takes any."""
    shape = (tokens, layers, groups)
    each = {
        name: np.full(shape, float(seconds.get(name, 0.0)))
        for name in ("selection", "flash", "dram", "fills", "on_hits", "on_misses")
    }
    return Work(
        resident=np.full(layers + 1, float(seconds.get("resident", 0.0))),
        streamed=np.full((1, layers + 1), float(seconds.get("streamed", 0.0))),
        kv_cache=np.full((tokens, layers), float(seconds.get("kv_cache", 0.0))),
        unmasked=np.full((tokens, layers + 1), float(seconds.get("unmasked", 0.0))),
        parts=(("mlp",) * groups,) * layers,
        ahead=np.full(shape, float(seconds["ahead"])) if "ahead" in seconds else None,
        left=np.full(shape, float(seconds["left"])) if "left" in seconds else None,
        **each,
    )


def uneven(rng, layers, groups):
    """Labels of the groups of layers that have up to so many, and which they have: bool ``[layers, groups]``."""
    counts = rng.integers(0, groups + 1, layers)
    labels = tuple(tuple(rng.choice(["mlp", "attention", "experts"], count).tolist()) for count in counts)
    return labels, np.arange(groups) < counts[:, None]


@st.composite
def random_works(draw, ahead=False, fills=False):
    tokens, layers, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = {name: draw(st.sampled_from([0.0, 0.1, 1.0, 10.0])) for name in ("flash", "dram", "compute")}
    shape = (tokens, layers, groups)
    parts, present = uneven(rng, layers, groups)

    def some(kind, *size):
        seconds = rng.random(size) * scale[kind] * (rng.random(size) < 0.8)
        return seconds * present if size == shape else seconds

    flash = some("flash", *shape)
    return Work(
        resident=some("dram", layers + 1), streamed=some("flash", 1, layers + 1), kv_cache=some("dram", tokens, layers),
        unmasked=some("compute", tokens, layers + 1), selection=some("compute", *shape), flash=flash,
        dram=some("dram", *shape), fills=some("dram", *shape) if fills else np.zeros(shape),
        on_hits=some("compute", *shape), on_misses=some("compute", *shape), parts=parts,
        starts=frozenset({0, draw(st.integers(0, tokens - 1))}),
        ahead=some("flash", *shape) if ahead else None, left=flash * rng.random(shape) if ahead else None,
    )  # fmt: skip
