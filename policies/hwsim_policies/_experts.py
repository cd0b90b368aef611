"""What the policies for experts have in common: their group, masks of experts, and the ranks of all experts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from hwsim.policy import Context, Group, ModelShape, PluginError

_ROUNDING = 1e-3  # of the logits' range: the model may choose among logits that it has rounded


def experts(*needs: str) -> list[Group]:
    """The one group of a policy for experts, decided from the signals `needs`; the mask may have any size."""
    return [Group("experts", axis="expert", slices=["experts.expert"], needs=list(needs))]


def mask_of(ctx: Context, chosen: np.ndarray) -> np.ndarray:
    """The mask of some experts, given by their numbers: int64 ``[chosen]`` -> bool ``[experts]``."""
    mask = np.zeros(ctx.units, bool)
    mask[chosen] = True
    return mask


def masks_of(ctx: Context, chosen: np.ndarray) -> np.ndarray:
    """The masks of many tokens: int64 ``[tokens, chosen]``, where -1 is no expert -> bool ``[tokens, experts]``."""
    masks = np.zeros((len(chosen), ctx.units), bool)
    rows, places = np.nonzero(chosen >= 0)
    masks[rows, chosen[rows, places]] = True
    return masks


class Ranked(NamedTuple):
    """All experts of a layer by falling rank: the model's own choice, then the others by their logits.

    Attributes:
        experts: int64 ``[experts]``: numbers of the experts.
        logits: float64 ``[experts]``: the router's logit of each.
    """

    experts: np.ndarray
    logits: np.ndarray


def ranked(ctx: Context) -> Ranked:
    """Rank all experts; ties among those that the model does not choose go to the lower number.

    Raises:
        PluginError: the model's choice does not follow from its router's logits alone.
    """
    chosen, logits = ctx.signals["experts"], ctx.signals["router"].astype(np.float64)
    others = np.setdiff1d(np.arange(ctx.units), chosen)
    others = others[np.argsort(-logits[others], kind="stable")]
    if len(others):
        highest = float(logits[others[0]])
        if highest - float(logits[chosen].min()) > _ROUNDING * float(np.ptp(logits)):
            raise PluginError(
                "the model passes over an expert with a higher logit than one that it chooses, so it ranks experts by "
                "more than the router's logits; choose router, router-k or drop-cold"
            )
        logits[chosen] = np.maximum(logits[chosen], highest)
    order = np.concatenate([chosen, others])
    return Ranked(order, logits[order])


def cached_first(ctx: Context, order: np.ndarray, window: int, top_j: int) -> np.ndarray:
    """The mask of as many experts as the model chooses: the `top_j` first, then cached ones, then the others.

    Args:
        ctx: the context of the token.
        order: experts by falling rank, int64 ``[experts]``.
        window: ranks from the first within which cached experts come before others.
        top_j: ranks from the first that are taken, cached or not.
    """
    preferred = ctx.cached[order]
    preferred[window:] = False
    preferred[:top_j] = True
    order = order[np.argsort(~preferred, kind="stable")]
    return mask_of(ctx, order[: len(ctx.signals["experts"])])


def check_top_j(top_j: int, model: ModelShape) -> None:
    """Refuse to keep more experts than the model chooses in a layer.

    Raises:
        PluginError: it chooses fewer.
    """
    if model.experts is not None and top_j > (used := model.experts.used):
        raise PluginError(f"top_j={top_j}: the model chooses {used} experts for a token; set top_j to at most {used}")
