"""One run: what is replayed, on which device, under which policy and eviction. Made and checked once, then followed
through its stages: placement, counts, timing, result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from pydantic import BaseModel

from hwsim.cache.shared import check_shared
from hwsim.device.effective import effective
from hwsim.device.profile import Profile
from hwsim.errors import ContractError, SettingError, one_line
from hwsim.evictions import Eviction
from hwsim.masking.guesses import Guesses
from hwsim.masking.mask_file import MaskFile
from hwsim.masking.observers import Observer
from hwsim.masking.streams import Masking
from hwsim.memory.groups import Plans, Units, plan_layers
from hwsim.memory.placement import Placement, Room, place
from hwsim.model.lora import read_adapter
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.simulation.settings import Settings, impossible, shown
from hwsim.timing import overlap as overlaps
from hwsim.timing.reads import ReadCounts
from hwsim.trace import Trace, TraceHeader
from hwsim.trace.sequences import Sequences
from hwsim.util.calls import call
from hwsim.util.option import is_whole
from hwsim.util.units import printable

_MOST_PARAMETERS = 10**13  # that a policy may declare: more is a slip of the pen


class Names(NamedTuple):
    """How a result calls the plug-ins."""

    policy: str
    eviction: str


@dataclass(frozen=True, eq=False)
class Source:
    """What is replayed: the signals of a trace, saved masks, or what a running model brings.

    Attributes:
        header: the model and the sequences.
        origin: where it came from, for the result's provenance.
        trace: gives signals; None: a model runs, or masks were saved.
        masks: that were saved.
    """

    header: TraceHeader
    origin: dict[str, Any]
    trace: Trace | None = None
    masks: MaskFile | None = None

    @classmethod
    def of_trace(cls, trace: Trace) -> Source:
        """The signals of an open trace."""
        origin = {"name": printable(trace.path.name), "hash": trace.hash, "origin": trace.header.origin}
        return cls(trace.header, origin, trace=trace)

    @classmethod
    def of_masks(cls, masks: MaskFile) -> Source:
        """Masks that a closed loop has saved."""
        origin = {"name": printable(masks.path.name), "origin": "saved masks", "provenance": masks.provenance}
        return cls(recorded(masks.model, masks.sequences), origin, masks=masks)


def recorded(model: ModelShape, sequences: list[Any]) -> TraceHeader:
    """A header for sequences of a model that no trace was recorded of."""
    fields = {"origin": "recorded", "model": model, "signals": ["input"], "sequences": sequences}
    return TraceHeader.model_validate(fields)


class Watched(NamedTuple):
    """What a run observes besides counts, because its time depends on it.

    Attributes:
        reads: of Flash; None: units are read one by one.
        guesses: of a prefetch rule; None: nothing is read ahead.
    """

    reads: ReadCounts | None = None
    guesses: Guesses | None = None

    @property
    def observers(self) -> list[Observer]:
        """Those that there are."""
        return [observer for observer in self if observer is not None]


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that decides a result.

    Attributes:
        source: what is replayed.
        device: the profile, as the user named it; None where only the placement is asked for.
        policy: decides the masks.
        eviction: picks which units leave the caches.
        settings: everything else.
        names: how the result calls policy and eviction.

    Raises:
        HwsimError: one of its kinds: the policy broke its contract, a setting is impossible, DRAM is too small.
    """

    source: Source
    device: Profile | None
    policy: Policy
    eviction: Eviction
    settings: Settings
    names: Names

    def __post_init__(self) -> None:
        """Refuse, before long work, what is impossible."""
        check_parameters(self.policy, f"policy {self.names.policy}")
        check_parameters(self.eviction, f"eviction {self.names.eviction}")
        if not self.shares_are_measured:
            self.check()

    @property
    def shares_are_measured(self) -> bool:
        """Whether the caches' shares follow from the Flash traffic of a run with equal ones, which comes first."""
        shares = self.settings.cache_shares
        return shares is not None and shares.weights is None

    @property
    def header(self) -> TraceHeader:
        """The model and the sequences."""
        return self.source.header

    @cached_property
    def sequences(self) -> Sequences:
        """Which tokens are decoded."""
        return Sequences(self.header.sequences)

    @cached_property
    def hardware(self) -> Profile:
        """The device as the run sees it: without what is ignored, and with the engine that reads DRAM.

        Raises:
            SettingError: the profile knows no such engine.
        """
        assert self.device is not None
        return effective(self.device, ignore=self.settings.ignore, engine=self.settings.engine)

    @cached_property
    def overlap(self) -> type[overlaps.Overlap]:
        """What may happen at the same time."""
        return overlaps.find(self.settings.overlap)

    @cached_property
    def placement(self) -> Placement:
        """Where everything lies.

        Raises:
            ContractError: the policy's groups are not possible on this model.
            SettingError: the budget cannot hold the KV cache, or the KV cache cannot hold the sequence; the neurons'
                order is that of another model, or the caches' shares are those of other groups.
        """
        settings, model = self.settings, self.header.model
        if settings.layout:
            settings.layout.check(model)
        if self.shares_are_measured:
            raise SettingError(
                "--cache-shares traffic: is measured by a replay of a trace; give the file of its --json"
            )
        plans = self._plans()
        parameters = self._ask("predictor_parameters", self.policy.predictor_parameters)
        if not is_whole(parameters, 0) or parameters > _MOST_PARAMETERS:
            raise ContractError(
                f"policy {self.names.policy}: predictor_parameters() returned {shown(parameters)}, "
                f"needs a whole number from 0 to 10^{len(str(_MOST_PARAMETERS)) - 1}"
            )
        folder = settings.lora if plans else None  # what masks nothing runs without the adapter
        adapter = read_adapter(folder, model, merged=settings.lora_merged) if folder else None
        return place(plans, model, settings.bits, self._room(), parameters, adapter)

    def _room(self) -> Room:
        """What DRAM is asked to hold."""
        settings, longest = self.settings, self.header.longest
        if settings.kv_window is not None:
            longest = min(longest, settings.kv_window)
        kv_tokens = longest if settings.kv_tokens is None else settings.kv_tokens
        if kv_tokens < longest:
            raise SettingError(f"--kv-tokens {kv_tokens} cannot hold the trace's longest sequence, {longest} tokens")
        budget = self.device.dram.budget if settings.dram is None and self.device else settings.dram
        if budget is None:
            raise impossible("dram", None, "given where there is no device")
        return Room(budget, kv_tokens, longest, settings.cache_scope, settings.cache_shares)

    def _plans(self) -> Plans:
        """The policy's groups in every layer."""
        model, policy, settings = self.header.model, self.policy, self.settings
        groups = [self._ask("groups", policy.groups)]
        if policy.in_layer(0) is not policy:
            layers = range(model.num_hidden_layers)
            groups = [self._ask("groups", policy.in_layer(layer).groups, f"layer {layer}: ") for layer in layers]
        try:
            return plan_layers(groups, model, Units(settings.bits, settings.block, settings.layout))
        except ContractError as error:
            raise ContractError(f"policy {self.names.policy}: {error}") from error

    def _ask(self, name: str, method: Callable[[ModelShape], Any], where: str = "") -> Any:
        """Ask the policy about the model."""
        return call(
            f"{where}policy {self.names.policy}", method, self.header.model, doing=f"{name}() raised", named=True
        )

    @cached_property
    def masking(self) -> Masking:
        """What decides the masks, and the caches that serve them."""
        placement = self.placement
        return Masking(
            self.header.model, self.policy, placement.plans, self.eviction, self.settings.caches, placement.shared,
            self.names.policy, self.settings.seed,
        )  # fmt: skip

    def check(self) -> None:
        """Refuse, before long work, what the device does not have, the caches cannot hold and the eviction cannot do.

        Raises:
            SettingError: the profile knows no such engine; the eviction cannot bypass or serve a shared cache; a set of
                units is missing or of other units, or a cache cannot hold its.
        """
        placement, settings, caches = self.placement, self.settings, self.settings.caches
        if self.device is not None:
            _ = self.hardware
        if placement.shared:
            check_shared(self.eviction, settings.cache_scope)
            bypass = caches.admission == "bypass"
            for option, chosen in (("--admission bypass", bypass), ("--pin", caches.pinned), ("--warm", caches.warm)):
                if chosen:
                    raise SettingError(
                        f"{option}: does not go with --cache-scope {settings.cache_scope}, where groups share a cache; "
                        "leave one of them out"
                    )
            return
        for sets in (caches.pinned, caches.warm) if placement.plans else ():
            if sets:
                sets.check(settings.block, settings.layout.digest if settings.layout else None)
        for plan in placement.plans:
            self.masking.cache(plan)

    def watched(self) -> Watched:
        """What must be observed besides counts."""
        settings, plans = self.settings, self.placement.plans
        if not plans:
            return Watched()
        reads = guesses = None
        if not settings.reads.plain:
            tokens, sparse = self.sequences.decoded_tokens, self.placement.bytes.sparse
            reads = ReadCounts(tokens, plans, settings.reads, self.hardware.flash, sparse)
        if settings.prefetch:
            guesses = Guesses(settings.prefetch[1], plans, self.sequences, self.source.trace)
        return Watched(reads, guesses)

    def but(self, **changes: Any) -> Run:
        """The same run with other settings."""
        return Run(self.source, self.device, self.policy, self.eviction, self.settings.but(**changes), self.names)


@dataclass(frozen=True, eq=False)
class Conditions:
    """What several runs have in common: all but the source and the policy.

    Attributes:
        device: the profile; None where only placements are asked for.
        eviction: picks which units leave the caches.
        settings: everything else.
        eviction_name: how results call the eviction; empty: by its class.
    """

    device: Profile | None
    eviction: Eviction
    settings: Settings = field(default_factory=Settings)
    eviction_name: str = ""

    def run(self, source: Source, policy: Policy, name: str = "") -> Run:
        """The run of one policy, which results call `name`, or by its class.

        Raises:
            HwsimError: as `Run`.
        """
        names = Names(name or type(policy).__name__, self.eviction_name or type(self.eviction).__name__)
        return Run(source, self.device, policy, self.eviction, self.settings, names)


def check_closed(settings: Settings) -> None:
    """Refuse what a running model does not look at.

    Raises:
        SettingError: it is about where misses lie in Flash, or about guesses, which a replay of saved masks looks at;
            or about how many entries of the KV cache are read, which the model itself would have to feel.
    """
    asked = {
        "--packed and --merge": not settings.reads.plain,
        "--overlap prefetch": settings.prefetch is not None,
    }
    if refused := [name for name, given in asked.items() if given]:
        raise SettingError(
            f"{refused[0]}: is for replays; write the masks with hwsim eval --save-masks FILE, then hwsim replay FILE"
        )
    if settings.kv_window is not None:
        raise SettingError("--kv-window: is for replays; a model that runs reads all entries")


def check_parameters(plugin: BaseModel, who: str) -> None:
    """Refuse, before anything is computed, a plug-in whose parameters the result could not name.

    Raises:
        ContractError: they cannot be written as JSON.
    """
    try:
        plugin.model_dump_json()
    except (Exception, SystemExit) as error:
        raise ContractError(f"{who}: its parameters cannot be written as JSON: {one_line(error)}") from error
