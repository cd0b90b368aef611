"""One run: its source, device, policy, eviction rule and settings.

A run is made and checked once, and then goes through its stages: placement, counts, timing, result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from pydantic import BaseModel

from hwsim.device.effective import effective
from hwsim.device.profile import Profile
from hwsim.errors import ContractError, SettingError, one_line
from hwsim.evictions import Eviction
from hwsim.masking.device_flags import FlagCounts, flags_of
from hwsim.masking.guesses import Guesses
from hwsim.masking.mask_file import MaskFile
from hwsim.masking.observers import Observer
from hwsim.masking.scan import check_shared_groups
from hwsim.masking.streams import Masking
from hwsim.memory.groups import Plans
from hwsim.memory.placement import Placement, Room, place
from hwsim.memory.planning import Units, plan_layers
from hwsim.model.lora import read_adapter
from hwsim.model.shape import Bits, ModelShape
from hwsim.model.stored import StoredBytes, bits_of
from hwsim.policy import Group, Policy
from hwsim.simulation.settings import Settings, impossible, shown
from hwsim.timing import overlap as overlaps
from hwsim.timing.reads import ReadCounts
from hwsim.trace import Trace, TraceHeader
from hwsim.trace.header import STORED_UNKNOWN
from hwsim.trace.sequences import Sequences
from hwsim.trace.steps import Steps, Together
from hwsim.util.calls import call
from hwsim.util.option import is_whole
from hwsim.util.units import printable

_MOST_PARAMETERS = 10**13  # parameters that a policy may declare: more is a typing error


class Names(NamedTuple):
    """Names of the plug-ins in results."""

    policy: str
    eviction: str


@dataclass(frozen=True, eq=False)
class Source:
    """The source of a run: the signals of a trace, saved masks, or a running model.

    Attributes:
        header: the model and the sequences.
        origin: description of the source for the result's provenance.
        trace: trace that gives the signals; None for saved masks and running models.
        masks: saved masks, or None.
    """

    header: TraceHeader
    origin: dict[str, Any]
    trace: Trace | None = None
    masks: MaskFile | None = None

    @classmethod
    def of_trace(cls, trace: Trace) -> Source:
        """The source for an open trace."""
        origin = {"name": printable(trace.path.name), "hash": trace.hash, "origin": trace.header.origin}
        return cls(trace.header, origin, trace=trace)

    @classmethod
    def of_masks(cls, masks: MaskFile) -> Source:
        """The source for masks that a closed loop has saved."""
        origin = {"name": printable(masks.path.name), "origin": "saved masks", "provenance": masks.provenance}
        why = str(masks.provenance.get(STORED_UNKNOWN, "")) if isinstance(masks.provenance, dict) else ""
        return cls(recorded(masks.model, masks.sequences, masks.stored, why), origin, masks=masks)


def recorded(
    model: ModelShape, sequences: list[Any], stored: StoredBytes | None = None, stored_unknown: str = ""
) -> TraceHeader:
    """A trace header for sequences of a model without a recorded trace.

    Args:
        model: shape of the model.
        sequences: windows of the text.
        stored: bytes of the model's matrices in its files; None: unknown.
        stored_unknown: the reason why they are unknown.
    """
    signal = "input" if model.layers_with("input") else "experts"  # a header names at least one
    fields = {
        "origin": "recorded", "model": model, "signals": [signal], "sequences": sequences, "stored": stored,
        "provenance": {STORED_UNKNOWN: stored_unknown} if stored_unknown else {},
    }  # fmt: skip
    return TraceHeader.model_validate(fields)


class Watched(NamedTuple):
    """Optional observations beyond hit counts, which a result needs.

    Attributes:
        reads: reads of Flash; None: units are read one by one.
        guesses: predictions of a prefetch rule, or None.
        flags: comparison with the flags of a device, or None.
    """

    reads: ReadCounts | None = None
    guesses: Guesses | None = None
    flags: FlagCounts | None = None

    @property
    def observers(self) -> list[Observer]:
        """The observers that are not None."""
        return [observer for observer in self if observer is not None]


def _check_bytes_only(model: ModelShape, settings: Settings) -> None:
    """Refuse settings that have no effect on a model of which only bytes are known.

    Raises:
        SettingError: such a setting is given.
    """
    given = {
        "--bits": settings.bits.model_dump() != Bits().model_dump(),
        "--kv-window": settings.kv_window is not None,
        "--kv-tokens": settings.kv_tokens is not None,
        "--bundle": settings.bundle,
    }
    reasons = {"--bits": "they say how large its weights are", "--bundle": "and an expert is one read anyhow"}
    for name, there in given.items():
        if there:
            what = reasons.get(name, "so it has no KV cache")
            raise SettingError(f"{name}: of {model.name} only bytes are known, {what}; leave {name} out")


@dataclass(frozen=True, eq=False)
class Run:
    """Everything that decides a result.

    Attributes:
        source: source of masks or signals.
        device: profile of the device; None if only the placement is needed.
        policy: decides the masks.
        eviction: picks the units that leave the caches.
        settings: everything else.
        names: names of policy and eviction in the result.

    Raises:
        HwsimError: the policy broke its contract, a setting is impossible, DRAM is too small, or a similar error.
    """

    source: Source
    device: Profile | None
    policy: Policy
    eviction: Eviction
    settings: Settings
    names: Names

    def __post_init__(self) -> None:
        """Refuse impossible runs before long work."""
        check_parameters(self.policy, f"policy {self.names.policy}")
        check_parameters(self.eviction, f"eviction {self.names.eviction}")
        if not self.shares_are_measured:
            self.check()

    @property
    def shares_are_measured(self) -> bool:
        """Whether the shares of the caches are to be measured by a run with equal shares, which comes first."""
        shares = self.settings.cache_shares
        return shares is not None and shares.weights is None

    @property
    def header(self) -> TraceHeader:
        """The model and the sequences."""
        return self.source.header

    @cached_property
    def sequences(self) -> Sequences:
        """The sequences, which state the decoded tokens."""
        return Sequences(self.header.sequences)

    @cached_property
    def steps(self) -> Steps:
        """What goes through the model together, step by step.

        Raises:
            SettingError: the trace does not say which drafts are right.
        """
        accepted = None
        if self.settings.accept == "trace":
            accepted = None if self.source.trace is None else self.source.trace.accepted()
            if accepted is None:
                raise SettingError(
                    f"--accept trace: {self.source.origin.get('name', 'the source')} does not say which drafts are "
                    "right; give a probability"
                )
        return Steps.of(self.sequences, self.together, accepted)

    @cached_property
    def together(self) -> Together:
        """What goes through the model together."""
        return self.settings.together(cached_prompts=self.placement.plans.sparse)

    @cached_property
    def bits(self) -> Bits:
        """Bits of stored numbers; those of weights may be the stored bytes that the source states.

        Raises:
            SettingError: weights are to lie as they were stored, and the source does not state it.
        """
        header, bits = self.header, self.settings.bits
        if not bits.stored or header.stored is not None:
            return bits_of(bits, header.model, header.stored)
        name = self.source.origin.get("name") or header.model.name
        numbers = "give numbers, such as --bits mlp=4.5,attention=4.5,lm_head=4.5"
        if header.stored_unknown:
            why = f"the stored bytes of its weights are unknown: {header.stored_unknown}; {numbers}"
        elif header.origin == "synthetic":
            why = f"it is synthetic, and no weights are stored for it; {numbers}"
        else:
            again = "make the masks again" if self.source.masks else "record it again with --overwrite"
            why = f"it does not state the stored bytes of its weights; {again} (this version writes them), or {numbers}"
        raise SettingError(f"--bits stored: {name}: {why}")

    @cached_property
    def hardware(self) -> Profile:
        """The effective profile of the device: without ignored parts, and with the engine that reads DRAM.

        Raises:
            SettingError: the profile has no such engine.
        """
        assert self.device is not None
        return effective(self.device, ignore=self.settings.ignore, engine=self.settings.engine)

    @cached_property
    def overlap(self) -> type[overlaps.Overlap]:
        """The overlap mode."""
        return overlaps.find(self.settings.overlap)

    @cached_property
    def placement(self) -> Placement:
        """The placement of the model in DRAM and Flash.

        Raises:
            ContractError: the policy's groups are impossible on this model.
            SettingError: the budget cannot hold the KV cache, or the KV cache the longest sequence; the layout is of
                another model, or the shares of the caches are of other groups; a setting has no effect on a model of
                which only bytes are known.
        """
        settings, model = self.settings, self.header.model
        if model.by_bytes:
            _check_bytes_only(model, settings)
        if settings.layout:
            settings.layout.check(model)
        if self.shares_are_measured:
            raise SettingError(
                "--cache-shares traffic: is measured by a replay of a trace; give the file of its --json"
            )
        plans = self._plans()
        parameters = self._ask("predictor_parameters", self.policy.predictor_parameters, model)
        if not is_whole(parameters, 0) or parameters > _MOST_PARAMETERS:
            raise ContractError(
                f"policy {self.names.policy}: predictor_parameters() returned {shown(parameters)}, "
                f"needs a whole number from 0 to 10^{len(str(_MOST_PARAMETERS)) - 1}"
            )
        folder = settings.lora if plans else None  # a policy without masks runs without the adapter
        adapter = read_adapter(folder, model, merged=settings.lora_merged) if folder else None
        return place(plans, model, self.bits, self._room(), parameters, adapter)

    def _room(self) -> Room:
        """The DRAM budget, the KV cache in it, and the division of the caches."""
        settings, longest = self.settings, self.header.longest
        if settings.kv_window is not None:
            longest = min(longest, settings.kv_window)
        kv_tokens = longest if settings.kv_tokens is None else settings.kv_tokens
        if kv_tokens < longest:
            raise SettingError(f"--kv-tokens {kv_tokens} cannot hold the trace's longest sequence, {longest} tokens")
        budget = self.device.dram.budget if settings.dram is None and self.device else settings.dram
        if budget is None and settings.cache is None:
            raise impossible("dram", None, "given where there is no device")
        together = min(settings.lockstep, len(self.header.sequences))
        return Room(
            budget or 0, kv_tokens, longest, settings.kv_window, settings.cache_scope, settings.cache_shares,
            settings.cache, together,
        )  # fmt: skip

    def _plans(self) -> Plans:
        """The policy's groups in every layer."""
        model, policy, settings = self.header.model, self.policy, self.settings
        # of the whole model first: a policy with values by layer checks there that it has one for each layer
        groups = [self._ask("groups", policy.groups, model)]
        if policy.in_layer(0) is not policy or model.layers:
            groups = [self._groups(layer) for layer in range(model.num_hidden_layers)]
        try:
            return plan_layers(groups, model, Units(self.bits, settings.block, settings.layout))
        except ContractError as error:
            raise ContractError(f"policy {self.names.policy}: {error}") from error

    def _groups(self, layer: int) -> list[Group]:
        """The policy's groups in one layer, which has none without an MLP."""
        shape = self.header.model.at(layer)
        return (
            [] if shape is None else self._ask("groups", self.policy.in_layer(layer).groups, shape, f"layer {layer}: ")
        )

    def _ask(self, name: str, method: Callable[[ModelShape], Any], model: ModelShape, where: str = "") -> Any:
        """Call a method of the policy with a model."""
        return call(f"{where}policy {self.names.policy}", method, model, doing=f"{name}() raised", named=True)

    @cached_property
    def masking(self) -> Masking:
        """The policy that decides the masks, and the caches that serve them."""
        placement = self.placement
        return Masking(
            self.header.model, self.policy, placement.plans, self.eviction, self.settings.caches, placement.shared,
            self.names.policy, self.settings.seed,
        )  # fmt: skip

    def check(self) -> None:
        """Check device, caches and eviction before long work.

        Raises:
            SettingError: the profile has no such engine; the eviction cannot bypass or serve a shared cache; a set of
                units is missing, has other units, or does not fit into its cache.
        """
        placement, settings, caches = self.placement, self.settings, self.settings.caches
        if self.device is not None:
            _ = self.hardware
        self._check_steps()
        self._check_prefetch()
        if placement.shared:
            check_shared_groups(self.eviction, settings.cache_scope, placement.plans)
            bypass = caches.admission == "bypass"
            bypass = bypass and not placement.plans.routed
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

    def _check_steps(self) -> None:
        """Refuse what does not go with steps of several members, or with prompts in the caches."""
        settings = self.settings
        if self.source.masks is not None and self.placement.plans.sparse:
            raise SettingError(
                f"{self.source.origin.get('name', 'the source')}: holds masks of experts, but not the order of their "
                "use, which decides what leaves the caches; replay the trace"
            )
        if self.together.plain:
            return
        if not settings.reads.plain and self.steps.prompts.any():
            raise SettingError(
                "--packed and --merge: count reads of decoded tokens only, and prompts go through the caches; give "
                "--prefill dense, too"
            )
        if self.source.masks is not None:
            raise SettingError(
                f"{self.source.origin.get('name', 'the source')}: holds masks that were decided token by token, for "
                "caches that begin empty; leave out --prefill cached, --keep-cache, --lockstep and --speculate"
            )

    def _check_prefetch(self) -> None:
        """Refuse a prefetch rule for steps of several members, or whose signals the source lacks."""
        if self.settings.prefetch is None:
            return
        if self.settings.lockstep > 1 or self.settings.speculate:
            raise SettingError(
                "--overlap prefetch: does not go with --lockstep and --speculate, since a rule predicts one token at a "
                "time; leave one of them out"
            )
        name, rule = self.settings.prefetch
        trace = self.source.trace
        for signal in rule.required:
            if trace is None or not trace.has(signal):
                signals = ",".join([*(trace.header.signals if trace else ["experts"]), signal])
                raise SettingError(
                    f"--prefetch {name}: {self.source.origin.get('name', 'the source')} has no signal {signal}; record "
                    f"it with --signals {signals}, or choose another rule, such as last-token"
                )

    def watched(self) -> Watched:
        """Optional observations beyond hit counts that the run needs."""
        settings, plans = self.settings, self.placement.plans
        if not plans:
            return Watched()
        reads = guesses = None
        if not settings.reads.plain:
            steps, sparse = int(np.count_nonzero(~self.steps.prompts)), self.placement.bytes.sparse
            reads = ReadCounts(steps, plans, settings.reads, self.hardware.flash, sparse)
        if settings.prefetch:
            guesses = Guesses(settings.prefetch[1], plans, self.sequences, self.source.trace, self.header.model)
        return Watched(reads, guesses, flags_of(self.source.trace, self.steps, routed=plans.routed))

    def but(self, **changes: Any) -> Run:
        """A copy of the run with other settings."""
        return Run(self.source, self.device, self.policy, self.eviction, self.settings.but(**changes), self.names)


@dataclass(frozen=True, eq=False)
class Conditions:
    """Common conditions of several runs: everything except the source and the policy.

    Attributes:
        device: profile of the device; None if only placements are needed.
        eviction: picks the units that leave the caches.
        settings: everything else.
        eviction_name: name of the eviction in results; empty: the name of its class.
    """

    device: Profile | None
    eviction: Eviction
    settings: Settings = field(default_factory=Settings)
    eviction_name: str = ""

    def run(self, source: Source, policy: Policy, name: str = "") -> Run:
        """Make the run of one policy; its name in results is `name`, or the name of its class.

        Raises:
            HwsimError: as `Run`.
        """
        names = Names(name or type(policy).__name__, self.eviction_name or type(self.eviction).__name__)
        return Run(source, self.device, policy, self.eviction, self.settings, names)


def check_closed(settings: Settings) -> None:
    """Refuse settings that closed loops do not support.

    Raises:
        SettingError: a setting is about the place of misses in Flash or about prefetch, which a replay of saved masks
            supports, or about the window of the KV cache, which would change the output of the model.
    """
    refusals = {
        "--packed and --merge": not settings.reads.plain,
        "--overlap prefetch": settings.prefetch is not None,
    }
    if refused := [name for name, given in refusals.items() if given]:
        raise SettingError(
            f"{refused[0]}: is for replays; write the masks with hwsim eval --save-masks FILE, then hwsim replay FILE"
        )
    together = {
        "--lockstep": settings.lockstep > 1,
        "--speculate": settings.speculate > 0,
        "--keep-cache": settings.keep_cache,
    }
    if refused := [name for name, given in together.items() if given]:
        raise SettingError(f"{refused[0]}: is for replays; record the model with hwsim record, then hwsim replay FILE")
    if settings.kv_window is not None:
        raise SettingError(
            "--kv-window: is for replays; a model that runs reads what its own windows say, which counts; leave it out"
        )


def check_parameters(plugin: BaseModel, who: str) -> None:
    """Refuse a plug-in whose parameters cannot be stated in a result.

    Raises:
        ContractError: the parameters cannot be written as JSON.
    """
    try:
        plugin.model_dump_json()
    except (Exception, SystemExit) as error:
        raise ContractError(f"{who}: its parameters cannot be written as JSON: {one_line(error)}") from error
