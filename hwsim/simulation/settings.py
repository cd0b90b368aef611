"""Everything that a user chooses besides trace, device, policy and eviction."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from hwsim.cache.cache import CacheSetup
from hwsim.errors import SettingError, did_you_mean
from hwsim.memory.neuron_order import Layout
from hwsim.memory.shares import Scope, Shares
from hwsim.model.shape import Bits
from hwsim.prefetch import Prefetch
from hwsim.timing.reads import ReadSetup
from hwsim.util.units import shorten

OverlapMode = Literal["none", "group", "pipeline", "prefetch"]

MECHANISMS = (
    "pages", "latency", "requests", "spread", "thermal", "compute", "overhead", "selection", "bookkeeping",
)  # fmt: skip
"""What a profile may say beyond flat rates, by the names of ``--ignore``."""


@dataclass(frozen=True)
class Settings:
    """Everything of a replay besides trace, device, policy and eviction.

    Attributes:
        dram: bytes, a size such as "4 GB" or a share such as "50%"; None: the profile's budget.
        kv_tokens: tokens that the KV cache is reserved for; None: the trace's longest sequence.
        bits: of stored numbers, by part of the model.
        timing: the event engine, or the closed form of the paper.
        overlap: ``group``: Flash and DRAM work at the same time within a group; ``pipeline``: and compute, and what the
            next layer surely needs is read in idle time; ``prefetch``: and what it is guessed to need.
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
        reads: how units lie in Flash and are read.
        prefetch: guesses what is needed next, under ``overlap="prefetch"``.
        fills: what comes from Flash is written to DRAM and read from there again, beside all other reads of DRAM.
        engine: which of the profile's engines reads DRAM; None: as fast as all of them together.
        ignore: mechanisms of the profile that are left out.
        kv_window: entries of the KV cache that a token reads at most; None: all.
        prefill_chunk: tokens of a prompt that go through the model at once; None: all.

    Raises:
        SettingError: one of them is impossible.
    """

    dram: int | str | None = None
    kv_tokens: int | None = None
    bits: Bits = field(default_factory=Bits)
    timing: Literal["events", "closed-form"] = "events"
    overlap: OverlapMode = "none"
    seed: int = 0
    per_token: bool = False
    lora: Path | None = None
    lora_merged: bool = False
    cache_scope: Scope = "matrix"
    cache_shares: Shares | None = None
    block: int = 1
    neurons: Layout | None = None
    caches: CacheSetup = field(default_factory=CacheSetup)
    reads: ReadSetup = field(default_factory=ReadSetup)
    prefetch: tuple[str, Prefetch] | None = None
    fills: bool = False
    engine: str | None = None
    ignore: tuple[str, ...] = ()
    kv_window: int | None = None
    prefill_chunk: int | None = None

    def __post_init__(self) -> None:
        """Refuse what nothing else would notice."""
        for name, choices in (
            ("timing", ("events", "closed-form")),
            ("overlap", get_args(OverlapMode)),
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
            raise impossible("bits", self.bits, "hwsim.model.shape.Bits")
        self._check_device()
        if not is_whole(self.block, 1):
            raise impossible("block", self.block, "a whole number from 1")
        if self.cache_scope == "global" and self.cache_shares:
            raise SettingError("--cache-shares: one cache for the whole model has no shares; leave it out")
        if not isinstance(self.caches, CacheSetup):
            raise impossible("caches", self.caches, "hwsim.cache.cache.CacheSetup")

    def _check_device(self) -> None:
        """Refuse what is impossible in how the device is used."""
        for name in ("kv_window", "prefill_chunk"):
            if getattr(self, name) is not None and not is_whole(getattr(self, name), 1):
                raise impossible(name, getattr(self, name), "a whole number from 1, or None")
        for name in self.ignore:
            if name not in MECHANISMS:
                raise SettingError(f"--ignore {shown(name)}: no such mechanism{did_you_mean(str(name), MECHANISMS)}")
        if (self.overlap == "prefetch") != (self.prefetch is not None):
            raise SettingError(
                "--overlap prefetch and --prefetch RULE go together: "
                + ("name a rule, such as last-token" if self.prefetch is None else "give --overlap prefetch, too")
            )
        if self.timing == "closed-form" and (asked := self.beyond_the_closed_form):
            raise SettingError(f"--timing closed-form knows no {', '.join(asked)}; leave it out, or take events")

    @property
    def beyond_the_closed_form(self) -> list[str]:
        """Options that only the event engine knows."""
        asked = {
            f"--overlap {self.overlap}": self.overlap in ("pipeline", "prefetch"),
            "--bundle, --packed, --merge": self.reads != ReadSetup(),
            "--fills": self.fills,
        }
        return [name for name, given in asked.items() if given]


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
