"""Loads of the engine, made up."""

import numpy as np
from hypothesis import strategies as st

from hwsim.timing.work import Load


def make(tokens=2, layers=1, groups=1, **seconds):
    """A load in which everything that is named takes so many seconds in each step, and nothing else takes any."""
    shape = (tokens, layers, groups)
    each = {
        name: np.full(shape, float(seconds.get(name, 0.0)))
        for name in ("selection", "flash", "dram", "fills", "on_hits", "on_misses")
    }
    return Load(
        resident=np.full(layers + 1, float(seconds.get("resident", 0.0))),
        streamed=np.full(layers + 1, float(seconds.get("streamed", 0.0))),
        kv_cache=np.full(tokens, float(seconds.get("kv_cache", 0.0))),
        unmasked=np.full((tokens, layers + 1), float(seconds.get("unmasked", 0.0))),
        kinds=("mlp",) * groups,
        ahead=np.full(shape, float(seconds["ahead"])) if "ahead" in seconds else None,
        left=np.full(shape, float(seconds["left"])) if "left" in seconds else None,
        **each,
    )


@st.composite
def random_loads(draw, ahead=False, fills=False):
    tokens, layers, groups = draw(st.integers(1, 4)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scale = {name: draw(st.sampled_from([0.0, 0.1, 1.0, 10.0])) for name in ("flash", "dram", "compute")}
    shape = (tokens, layers, groups)

    def some(kind, *size):
        return rng.random(size) * scale[kind] * (rng.random(size) < 0.8)

    flash = some("flash", *shape)
    return Load(
        resident=some("dram", layers + 1), streamed=some("flash", layers + 1), kv_cache=some("dram", tokens),
        unmasked=some("compute", tokens, layers + 1), selection=some("compute", *shape), flash=flash,
        dram=some("dram", *shape), fills=some("dram", *shape) if fills else np.zeros(shape),
        on_hits=some("compute", *shape), on_misses=some("compute", *shape), kinds=("mlp", "attention", "mlp")[:groups],
        starts=frozenset({0, draw(st.integers(0, tokens - 1))}),
        ahead=some("flash", *shape) if ahead else None, left=flash * rng.random(shape) if ahead else None,
    )  # fmt: skip
