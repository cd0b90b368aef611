"""The evaluation of policies in the closed loop: accuracy and speed of the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.closed_loop.carried import Carried, carry, require_peft
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.closed_loop.scoring import Score, score
from hwsim.device.profile import Profile
from hwsim.errors import BlindError, SettingError
from hwsim.evictions import Eviction
from hwsim.masking.counts import Demand
from hwsim.masking.mask_file import MaskWriter
from hwsim.masking.scan import worth_compiling
from hwsim.memory.placement import Placement
from hwsim.policy import Policy
from hwsim.record import Settings as TextSettings
from hwsim.record.extras import told_as
from hwsim.record.hooks import Layer
from hwsim.record.loading import Loaded
from hwsim.record.prepare import Prepared, Progress, passes, prepare
from hwsim.record.runner import Runner
from hwsim.simulation import replay as simulation
from hwsim.simulation.metrics import Evaluation
from hwsim.trace import Sequence

_WINDOWS = 8  # that go through the model together where it does not run on a CPU


Watch = Callable[[list[Score]], bool]
"""Is given the scores of all policies after each pass; False ends the run."""


class Candidate(NamedTuple):
    """One policy to evaluate."""

    name: str
    policy: Policy


@dataclass
class _Run:
    """One policy while it is evaluated."""

    candidate: Candidate
    placement: Placement
    loop: ClosedLoop
    by_token: bool = False  # the model runs token by token, so that the policy may read shared caches
    score: Score = field(default_factory=Score)
    demands: list[Demand] = field(default_factory=list)


def evaluate(
    model: str,
    text: str,
    profile: Profile,
    candidates: list[Candidate],
    eviction: Eviction,
    reading: TextSettings | None = None,
    settings: simulation.Settings | None = None,
    *,
    eviction_name: str = "",
    masks: MaskWriter | None = None,
    batch: int | None = None,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Run a model over a text under each policy, with the cache in the loop.

    The policies share one dense pass. Each costs another forward pass and its scans. Where groups share caches and the
    policy reads them, the model runs token by token for it, which takes longer; the result says so.

    Args:
        model: as `hwsim.record.record` takes it.
        text: a UTF-8 file, or the name of a bundled text.
        profile: the device: its DRAM budget decides what the caches hold.
        candidates: the policies.
        eviction: picks who leaves the caches.
        reading: which tokens, in windows of which length.
        settings: DRAM, bits, timing, seed and LoRA adapter, as in a replay. The dense pass runs without the adapter.
        eviction_name: how results call the eviction.
        masks: a file that the masks are written to; for one policy only.
        batch: windows that go through the model together; None: one on a CPU, which several would not speed up.
        progress: is told how far it is.

    Raises:
        HwsimError: one of its kinds.
    """
    settings = settings or simulation.Settings()
    simulation.check_closed(settings)
    if masks and len(candidates) != 1:
        raise SettingError("masks can be saved of one policy at a time; name one --policy")
    if batch is not None and batch < 1:
        raise SettingError(f"--batch {batch}: must be at least 1")
    if settings.lora:
        require_peft()
    with Loops(model, text, reading, batch=batch, progress=progress) as loops:
        return loops.run(profile, candidates, eviction, settings, eviction_name=eviction_name, masks=masks)


class Loops:
    """A model and a text, to run under one set of policies after the other; the weights are loaded once, when needed.

    Args:
        model: as for `evaluate`.
        text: as for `evaluate`.
        reading: which tokens.
        batch: windows that go through the model together.
        keep_dense: keep the hidden states of the dense pass, tokens x hidden size x 4 bytes, for the next run.
        progress: is told how far it is.

    Raises:
        HwsimError: the model or the text cannot be had.
    """

    def __init__(
        self, model: str, text: str, reading: TextSettings | None = None, *, batch: int | None = None,
        keep_dense: bool = False, progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self._tell = progress or (lambda phase, done, total: None)
        self._batch = batch
        self.ready = prepare(model, text, reading or TextSettings(), self._tell)
        _check_lengths(self.ready)
        self._loaded: Loaded | None = None
        self._runner: Runner | None = None
        self._carried: Carried | None = None
        self._lora: Path | None = None
        self._dense: dict[int, Any] | None = {} if keep_dense else None

    def run(
        self,
        profile: Profile,
        candidates: list[Candidate],
        eviction: Eviction,
        settings: simulation.Settings,
        *,
        eviction_name: str = "",
        masks: MaskWriter | None = None,
        watch: Watch | None = None,
    ) -> list[Evaluation]:
        """One set of policies, as `evaluate`.

        Args:
            profile: the device.
            candidates: the policies.
            eviction: picks who leaves the caches.
            settings: as for `evaluate`; the adapter, if there is one, is the same in all runs.
            eviction_name: how results call the eviction.
            masks: a file that the masks are written to.
            watch: is given the scores after each pass; with False the run ends, without results.

        Raises:
            HwsimError: as `evaluate`.
        """
        ready, header = self.ready, self.ready.header
        placements = [
            simulation.layout(header.model, profile, each.policy, header.longest, settings, each.name)
            for each in candidates
        ]
        for placement in placements:
            simulation.check_caches(placement, eviction, settings)
        if self._loaded is None:
            self._loaded = ready.load(self._tell)
        if settings.lora and self._carried is None:
            self._carried, self._lora = carry(self._loaded, settings.lora, ready.source.name), settings.lora
        if settings.lora and settings.lora != self._lora:
            raise SettingError(f"--lora {settings.lora}: the model carries {self._lora}; one adapter at a time")
        layers = self._carried.layers if self._carried else self._loaded.layers
        runs = [
            _Run(each, placement, _loop(ready, each, placement, eviction, settings, layers, masks))
            for each, placement in zip(candidates, placements, strict=True)
        ]
        if masks:
            each, placement = candidates[0], placements[0]
            parts = (each.name, each.policy, placement.predictor_parameters, placement.adapter)
            masks.begin(header, placement.groups, *parts)
        if self._runner is None:
            self._runner = Runner(self._loaded.model, ready.libraries)
        try:
            with told_as(f"--model {ready.source.name}: cannot be run"):
                carried = self._carried if settings.lora else None
                whole = self._passes(self._runner, runs, carried, self._loaded.from_disk, watch)
            if not whole:
                return []
            if masks:
                masks.finish()
        finally:
            if masks:
                masks.discard()
        return [_result(ready, run, profile, eviction, eviction_name, settings) for run in runs]

    def _passes(
        self, runner: Runner, runs: list[_Run], carried: Carried | None, from_disk: bool, watch: Watch | None
    ) -> bool:
        ready, settings, total = self.ready, self.ready.settings, self.ready.settings.tokens
        work, done = (len(runs) + 1) * total, 0
        together = self._batch or (1 if settings.device == "cpu" else _WINDOWS)
        for start, windows, length in passes(0, settings, from_disk, together):
            ids = ready.ids[start : start + windows * length].reshape(windows, length)
            first = start // settings.context
            sequences = ready.header.sequences[first : first + windows]

            def step(name: str, count: int = ids.size) -> None:
                nonlocal done
                done += count
                self._tell("evaluating", done, work)

            dense = None if self._dense is None else self._dense.get(start)
            if dense is None:
                dense = runner.hidden(ids)
                if self._dense is not None:
                    self._dense[start] = dense
            step("dense")
            hiddens = []
            for run in runs:
                if run.placement.groups:
                    hiddens.append(_masked(runner, run, carried, ids, sequences, first))
                else:
                    hiddens.append(dense)
                    run.loop.window(sequences, first)
                    run.demands.append(run.loop.demand())
                step(run.candidate.name)
            score(runner, ids, settings.prompt, dense, hiddens, [run.score for run in runs])
            if watch and not watch([run.score for run in runs]):
                return False
        return True

    def close(self) -> None:
        """Take the hooks off the model."""
        if self._runner is not None:
            self._runner.remove()
            self._runner = None

    def __enter__(self) -> Loops:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _check_lengths(ready: Prepared) -> None:
    shortest = min(sequence.tokens - sequence.prompt for sequence in ready.header.sequences)
    if shortest < 2:
        raise SettingError(
            f"the shortest window has {shortest} decoded token, and the first predicts nothing that can be scored; "
            "make --tokens a multiple of --context, or the prompt shorter"
        )


def _loop(
    ready: Prepared, each: Candidate, placement: Placement, eviction: Eviction, settings: simulation.Settings,
    layers: list[Layer], masks: MaskWriter | None,
) -> ClosedLoop:  # fmt: skip
    return ClosedLoop(
        layers, ready.header.model, each.policy, placement.groups, eviction, settings.caches,
        name=each.name, seed=settings.seed, sink=masks, shared=placement.shared,
        fast=worth_compiling(ready.settings.tokens * len(layers) * len(placement.groups)),
    )  # fmt: skip


def _masked(
    runner: Runner, run: _Run, carried: Carried | None, ids: np.ndarray, sequences: list[Sequence], first: int
) -> Any:
    """Hidden states of some windows under a policy, ``[windows, tokens, hidden]``."""
    if not run.by_token and not (carried and sequences[0].prompt):
        run.loop.window(sequences, first)
        try:
            with carried or nullcontext(), run.loop:
                hidden = runner.hidden(ids)
        except BlindError:
            if not run.placement.shared:
                raise
            run.loop, run.by_token = run.loop.by_token(), True
            return _masked(runner, run, carried, ids, sequences, first)
        run.demands.append(run.loop.demand())
        return hidden
    return runner.torch.cat(
        [
            _in_pieces(runner, run, carried, window, sequence, number)
            for number, (window, sequence) in enumerate(zip(ids, sequences, strict=True), first)
        ]
    )


def _in_pieces(
    runner: Runner, run: _Run, carried: Carried | None, ids: np.ndarray, sequence: Sequence, number: int
) -> Any:
    """One window, its prompt read without masks and adapter, ``[1, tokens, hidden]``."""
    decoded = sequence.tokens - sequence.prompt
    run.loop.begin(number)

    @contextmanager
    def masked(tokens: int) -> Iterator[None]:
        run.loop.continued(tokens)
        with carried or nullcontext(), run.loop:
            yield
        run.demands.append(run.loop.demand())

    pieces = [1] * decoded if run.by_token else [decoded]
    prompt = [(sequence.prompt, nullcontext())] if sequence.prompt else []
    return runner.in_pieces(ids, [*prompt, *((tokens, masked(tokens)) for tokens in pieces)])


def _result(
    ready: Prepared, run: _Run, profile: Profile, eviction: Eviction, eviction_name: str, settings: simulation.Settings
) -> Evaluation:
    demand = Demand.joined(run.demands)
    origin: dict[str, Any] = {
        "name": ready.header.provenance["text"]["name"],
        "origin": "closed loop",
        "provenance": ready.header.provenance,
    }
    names = simulation.Names(run.candidate.name, eviction_name or type(eviction).__name__)
    result = simulation.measure(
        ready.header, origin, demand, run.placement, profile, run.candidate.policy, eviction, settings, names
    )
    if run.by_token:
        note = f"{run.candidate.name}: reads caches that groups share, so the model ran token by token for it."
        result = result.model_copy(update={"notes": [*result.notes, note]})
    return Evaluation(
        **dict(result),
        perplexity=run.score.perplexity,
        dense_perplexity=run.score.dense_perplexity,
        kl=run.score.kl,
        top1=run.score.top1,
        tokens_scored=run.score.tokens,
    )
