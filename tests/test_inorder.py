"""Where nothing can interleave the clock that only adds up is SimPy's, to the bit."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hwsim import inorder
from hwsim.engine import Recorders, run_events
from hwsim.loads import Load
from hwsim.metrics import Timing
from hwsim.profile import Thermal


@st.composite
def loads(draw: Any) -> Load:
    """Seconds over many magnitudes, some zero, of any number of layers and groups."""
    tokens, layers, groups = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(0, 4))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    empty = draw(st.sampled_from([0.0, 0.3, 0.9]))

    def seconds(*shape: int) -> np.ndarray:
        found = 10.0 ** rng.uniform(-9, 0, shape)
        return np.where(rng.random(shape) < empty, 0.0, found)

    each = (tokens, layers, groups)
    kinds = tuple(rng.choice(["mlp", "attention"], groups).tolist())
    return Load(
        resident=seconds(layers + 1), streamed=seconds(layers + 1), kv_cache=seconds(tokens),
        unmasked=seconds(tokens, layers + 1), selection=seconds(*each), flash=seconds(*each), dram=seconds(*each),
        fills=np.zeros(each), on_hits=seconds(*each), on_misses=seconds(*each), kinds=kinds,
        starts=frozenset({0, tokens // 2}),
    )  # fmt: skip


def plain(timing: Timing) -> dict[str, Any]:
    return timing.model_dump() | {"token_s": timing.token_s.tolist()}


HEAT = st.none() | st.builds(
    lambda after, factor: Thermal.model_validate({"after": f"{after} us", "factor": factor, "source": "made up"}),
    st.floats(0.001, 1e6).map(lambda value: f"{value:.6f}"),
    st.floats(0.1, 0.9),
)


@settings(max_examples=300)
@given(load=loads(), thermal=HEAT, step=st.integers(1, 60))
def test_it_is_simpy_to_the_bit(load: Load, thermal: Thermal | None, step: int) -> None:
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inorder, "_BLOCK", step)
        fast = run_events(load, overlap="none", thermal=thermal, progress=told.append)
    slow = run_events(load, overlap="none", thermal=thermal, recorder=Recorders([]))
    assert plain(fast) == plain(slow)
    assert told[-1] == load.tokens


def test_it_is_taken_where_nothing_can_interleave() -> None:
    shape = (2, 1, 1)
    nothing = {name: np.zeros(shape) for name in ("selection", "flash", "dram", "on_hits", "on_misses")}
    kinds = {"kinds": ("mlp",), "fills": np.zeros(shape)}
    each = {"resident": np.ones(2), "streamed": np.ones(2), "kv_cache": np.ones(2), "unmasked": np.ones((2, 2))}
    assert inorder.applies(Load(**nothing, **kinds, **each), "none")
    assert not inorder.applies(Load(**nothing, **kinds, **each), "group")
    assert not inorder.applies(Load(**nothing, **kinds | {"fills": np.ones(shape)}, **each), "none")
