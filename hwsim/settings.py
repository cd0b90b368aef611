"""Everything that a user chooses besides trace, device, policy and eviction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from hwsim.cache import CacheSetup
from hwsim.errors import SettingError
from hwsim.layout import Layout
from hwsim.model import Bits
from hwsim.shares import Scope, Shares
from hwsim.units import shorten


@dataclass(frozen=True)
class Settings:
    """Everything of a replay besides trace, device, policy and eviction.

    Attributes:
        dram: bytes, a size such as "4 GB" or a share such as "50%"; None: the profile's budget.
        kv_tokens: tokens that the KV cache is reserved for; None: the trace's longest sequence.
        bits: of stored numbers, by part of the model.
        timing: the event engine, or the closed form of the paper.
        overlap: ``group``: Flash and DRAM work at the same time within a group.
        seed: of the random numbers that policies may draw.
        per_token: keep a record of every token.
        caches: how they admit, and what is in them from the start.
        lora: folder of a LoRA adapter: its bytes are resident and its parameters count in the density of every policy
            that masks something; one that masks nothing runs without it.
        lora_merged: the adapter's product is added to the weights: it costs no bytes of its own.
        cache_scope: who shares a cache: nobody, all groups of a layer, or all groups of all layers.
        cache_shares: how the caches' bytes are divided over layers and groups; None: equally.
        block: neighbours of a group's axis that make up a unit.
        neurons: which neurons are neighbours; None: the model's own order.

    Raises:
        SettingError: one of them is impossible.
    """

    dram: int | str | None = None
    kv_tokens: int | None = None
    bits: Bits = field(default_factory=Bits)
    timing: Literal["events", "closed-form"] = "events"
    overlap: Literal["none", "group"] = "none"
    seed: int = 0
    per_token: bool = False
    lora: Path | None = None
    lora_merged: bool = False
    cache_scope: Scope = "matrix"
    cache_shares: Shares | None = None
    block: int = 1
    neurons: Layout | None = None
    caches: CacheSetup = field(default_factory=CacheSetup)

    def __post_init__(self) -> None:
        """Refuse what nothing else would notice."""
        for name, choices in (
            ("timing", ("events", "closed-form")),
            ("overlap", ("none", "group")),
            ("cache_scope", ("matrix", "layer", "global")),
        ):
            if getattr(self, name) not in choices:
                raise impossible(name, getattr(self, name), f"one of {', '.join(choices)}")
        if not is_whole(self.seed, 0):
            raise impossible("seed", self.seed, "a whole number from 0")
        if self.kv_tokens is not None and not is_whole(self.kv_tokens, 1):
            raise impossible("kv_tokens", self.kv_tokens, "a whole number from 1, or None")
        if self.dram is not None and not isinstance(self.dram, str) and not is_whole(self.dram, 0):
            raise impossible("dram", self.dram, "bytes from 0, text such as '4 GB' or '50%', or None")
        if not isinstance(self.bits, Bits):
            raise impossible("bits", self.bits, "hwsim.model.Bits")
        if not is_whole(self.block, 1):
            raise impossible("block", self.block, "a whole number from 1")
        if self.cache_scope == "global" and self.cache_shares:
            raise SettingError("--cache-shares: one cache for the whole model has no shares; leave it out")
        if not isinstance(self.caches, CacheSetup):
            raise impossible("caches", self.caches, "hwsim.cache.CacheSetup")


def is_whole(value: object, least: int) -> bool:
    """Whether it is a whole number, of at least `least`."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def impossible(name: str, value: object, rule: str) -> SettingError:
    """The error of a setting that breaks a rule."""
    return SettingError(f"setting {name}={shown(value)}: must be {rule}")


def shown(value: object) -> str:
    """Any value, for a message; some have no text (a number of 5,000 digits) or raise."""
    try:
        return shorten(repr(value))
    except Exception:
        return f"a {type(value).__name__}"
