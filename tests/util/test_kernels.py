"""Do the kernels give what plain Python gives, ties included?"""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from hwsim.util import kernels

SCORES = arrays(
    np.float32,
    st.integers(1, 60),
    # few values, so that ties are common; infinities are allowed scores
    elements=st.sampled_from([0.0, -0.0, 1.0, 2.0, 2.5, -3.0, np.inf, -np.inf]),
)


def plain_top_k(scores, k):
    best = sorted(range(len(scores)), key=lambda unit: (-scores[unit], unit))[:k]
    return [unit in best for unit in range(len(scores))]


@given(SCORES, st.integers(0, 70))
def test_top_k(scores, k):
    assert kernels.top_k(scores, k).tolist() == plain_top_k(scores, k)


@given(SCORES, st.integers(0, 70))
def test_top_k_into_a_buffer(scores, k):
    buffer = np.ones(len(scores), bool)
    assert kernels.top_k(scores, k, buffer) is buffer
    assert buffer.tolist() == plain_top_k(scores, k)


@given(st.data(), SCORES)
def test_stay(data, rank):
    candidates = data.draw(arrays(bool, len(rank)))
    count = data.draw(st.integers(0, int(candidates.sum())))
    units = np.flatnonzero(candidates).tolist()
    best = sorted(units, key=lambda unit: (-rank[unit], unit))[:count]
    assert np.flatnonzero(kernels.stay(rank, candidates, count)).tolist() == sorted(best)


@given(arrays(bool, st.integers(1, 40)), st.integers(0, 50))
def test_first_k(mask, k):
    assert np.flatnonzero(kernels.first_k(mask, k)).tolist() == np.flatnonzero(mask).tolist()[:k]


EVERY_HALF = np.arange(2**16, dtype=np.uint16).view(np.float16)


def test_finite():
    assert np.array_equal(kernels.finite(EVERY_HALF), np.isfinite(EVERY_HALF))


def test_all_finite_of_every_half_beside_every_sign():
    assert kernels.all_finite(EVERY_HALF[:0])
    assert kernels.all_finite(EVERY_HALF[np.isfinite(EVERY_HALF)].reshape(-1, 64))
    for other in (-1, 0, 1):
        beside = np.stack([EVERY_HALF, np.full_like(EVERY_HALF, other)], axis=1)
        assert [kernels.all_finite(each) for each in beside] == np.isfinite(EVERY_HALF).tolist()


def test_widen_is_astype_for_every_float16_to_the_bit():
    halves = EVERY_HALF[np.isfinite(EVERY_HALF)].reshape(-1, 64)
    wide = kernels.widen(halves)
    assert wide.dtype == np.float32
    assert wide.shape == halves.shape
    assert np.array_equal(wide.view(np.uint32), halves.astype(np.float32).view(np.uint32))


def test_widen_where_subnormal_numbers_are_taken_for_0(monkeypatch):
    monkeypatch.setattr(kernels, "_SUBNORMAL", np.float32(0))
    halves = EVERY_HALF[np.isfinite(EVERY_HALF)]
    assert np.array_equal(kernels.widen(halves), halves.astype(np.float32))
