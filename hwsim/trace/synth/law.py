"""The law that synthetic signals obey, and what follows from it for the top-k sets of a token.

The value of unit i at token t is ``size_t x Q(F(y)) x sign(z)`` with ``y = s_i |z|``:

* ``z`` follows itself from token to token, ``z_t = rho z_(t-1) + sqrt(1 - rho^2) e``, with normal ``e``. So a unit that
  is strong now is likely to be strong at the next token, and keeps its sign.
* ``s_i`` is the unit's own scale, ``(1 - u)^-spread`` with u uniform (a Pareto law): a few units are strong at most
  tokens, which makes some popular and lets even distant tokens share more of their top-k than chance.
* ``F`` is the distribution of ``y``, and ``Q`` the recorded quantiles of a magnitude, whatever they are: the tails.
* ``size_t`` is the token's own size, with the recorded quantiles, and follows itself likewise.

``Q`` rises with y, so which units are in a token's top-k depends on ``spread`` and ``rho`` only. The overlap of distant
tokens gives the spread, that of neighbours then rho. In recorded layers of SmolLM2-135M a Pareto law fits the overlaps
at keep 0.5 and 0.2 together, near and far, to about 2 %; log-normal scales miss by up to 8 %.

What it leaves out: the first token of a sequence, whose huge values make the recorded maximum and rms; units that are
huge at every token; tokens that differ in the shape of their tail and not in size alone (the glu of the first layer);
and any relation between layers, or between ``up`` and ``gate``.
"""

from __future__ import annotations

import functools
import math

import numpy as np

MAX_SPREAD, MAX_RHO = 2.0, 0.98
_SCALES = 64  # points that stand for the law of a unit's scale
_FAR_SD = 37.0  # beyond this the normal tail is below the smallest float


@functools.cache
def _normal_tail() -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(0.0, _FAR_SD, int(_FAR_SD) * 128 + 1)
    return x, np.array([math.log(math.erfc(value / math.sqrt(2)) / 2) for value in x])


def upper(x: np.ndarray) -> np.ndarray:
    """P(Z > x) of a standard normal Z, to 1 part in 10^5 even far out."""
    tail = np.exp(np.interp(np.abs(x), *_normal_tail()))
    return np.where(x < 0, 1.0 - tail, tail)


def scales(units: int, spread: float | np.ndarray) -> np.ndarray:
    """Scales of `units` units, rising and evenly spaced in probability: float64 ``[..., units]``."""
    u = (np.arange(units) + 0.5) / units
    return np.exp(-np.log1p(-u) * np.asarray(spread)[..., None])


def exceed(y: np.ndarray, units: int, spread: float) -> np.ndarray:
    """P(s |z| > y) over `units` units, for each of `y`, all positive: the complement of F."""
    # the strongest units make the tail and count one by one, the others in groups of alike
    edges = np.unique(np.round(np.geomspace(1, units + 1, 192)).astype(np.int64)) - 1
    middles = (edges[1:] + edges[:-1]) / 2
    found = (middles / units) ** -spread
    # a mixture of many tails is smooth in log y: a coarse grid and interpolation are exact enough
    grid = np.linspace(math.log(y.min()), math.log(y.max()), 1536)
    coarse = 2 * upper(np.exp(grid)[:, None] / found) @ (np.diff(edges) / units)
    return np.exp(np.interp(np.log(y), grid, np.log(np.maximum(coarse, 1e-300))))


def thresholds(keep: float, spreads: np.ndarray) -> np.ndarray:
    """The y above which a share `keep` of all values lies, for each spread ``[n]``."""
    found = scales(_SCALES, spreads)
    low, high = np.full(spreads.shape, -12.0), np.full(spreads.shape, 24.0)
    for _ in range(40):
        middle = (low + high) / 2
        more = 2 * upper(np.exp(middle)[:, None] / found).mean(axis=1) > keep
        low, high = np.where(more, middle, low), np.where(more, high, middle)
    return np.exp((low + high) / 2)


@functools.lru_cache(maxsize=64)
def far_overlaps(keep: float) -> tuple[np.ndarray, np.ndarray]:
    """Spreads, and the share of its top-k that a token has in common with a distant one under each."""
    spreads = np.linspace(0.0, MAX_SPREAD, 41)
    picked = 2 * upper(thresholds(keep, spreads)[:, None] / scales(_SCALES, spreads))
    return spreads, (picked**2).mean(axis=1) / keep


def next_overlaps(keep: float, spread: float) -> tuple[np.ndarray, np.ndarray]:
    """Values of rho, and the share of its top-k that a token has in common with the next one under each."""
    rhos = np.linspace(0.0, MAX_RHO, 35)
    level = thresholds(keep, np.array([spread]))[0] / scales(_SCALES, spread)
    points, weights = np.polynomial.hermite_e.hermegauss(21)
    # two neighbours share a part of z; given that part they are independent
    shared = np.sqrt(rhos)[:, None, None] * points
    own = np.sqrt(1 - rhos)[:, None, None]
    picked = upper((level[:, None] - shared) / own) + upper((level[:, None] + shared) / own)
    return rhos, (picked**2).mean(axis=1) @ (weights / weights.sum()) / keep
