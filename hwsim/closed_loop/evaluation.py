"""Evaluate policies in the closed loop: accuracy and speed of the same run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from hwsim.closed_loop.carried import Carried, carry, require_peft
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.closed_loop.routing import Rules, find_rules
from hwsim.closed_loop.scoring import Score, score
from hwsim.errors import BlindError, SettingError
from hwsim.masking.counts import Counts
from hwsim.masking.mask_file import MaskWriter
from hwsim.masking.streams import worth_compiling
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.record import Settings as TextSettings
from hwsim.record.extras import told_as
from hwsim.record.hooks import Layer
from hwsim.record.loading import Loaded
from hwsim.record.prepare import Prepared, Progress, passes, prepare
from hwsim.record.runner import Runner
from hwsim.simulation.metrics import Evaluation
from hwsim.simulation.plugins import baseline
from hwsim.simulation.result import measure
from hwsim.simulation.run import Conditions, Run, Source, check_closed
from hwsim.trace import Sequence

_WINDOWS = 8  # windows that go through the model together, unless it runs on a CPU


Watch = Callable[[list[Score]], bool]
"""Callback: receives the scores of all policies after each pass; returns False to end the run."""


class Candidate(NamedTuple):
    """One policy to evaluate."""

    name: str
    policy: Policy


@dataclass
class _Loop:
    """State of one policy during the evaluation."""

    run: Run
    loop: ClosedLoop
    by_token: bool = False  # the model runs token by token, so that the policy may read shared caches
    score: Score = field(default_factory=Score)
    counts: list[Counts] = field(default_factory=list)


def evaluate(
    model: str,
    text: str,
    conditions: Conditions,
    candidates: list[Candidate],
    reading: TextSettings | None = None,
    *,
    masks: MaskWriter | None = None,
    batch: int | None = None,
    compare: bool = False,
    progress: Progress | None = None,
) -> list[Evaluation]:
    """Run a model over a text under each policy, with the cache in the loop.

    The policies share one dense pass. Each policy costs another forward pass and its scans. If groups share caches and
    a policy reads them, the model runs token by token for it, which takes longer; a note of the result says so.

    Args:
        model: the model, as for `hwsim.record.record`.
        text: a UTF-8 file, or the name of a bundled text.
        conditions: device, eviction and settings, as in a replay. The dense pass runs without the LoRA adapter.
        candidates: the policies.
        reading: tokens to read, and the length of windows.
        masks: writer that saves the masks; for one policy only.
        batch: windows that go through the model together; None: one on a CPU, where more would not be faster.
        compare: whether to add the model as it is, by the policy `hwsim.simulation.plugins.baseline`, as the last
            result, if it is not among the candidates.
        progress: callback, receives the progress.

    Raises:
        HwsimError: the model or the text cannot be loaded, a setting is impossible, or a similar error.
    """
    check_closed(conditions.settings)
    if masks and len(candidates) != 1:
        raise SettingError("masks can be saved of one policy at a time; name one --policy")
    if batch is not None and batch < 1:
        raise SettingError(f"--batch {batch}: must be at least 1")
    if conditions.settings.lora:
        require_peft()
    with Loops(model, text, reading, batch=batch, progress=progress) as loops:
        if compare:
            candidates = with_baseline(candidates, loops.ready.header.model)
        return loops.run(conditions, candidates, masks=masks)


def with_baseline(candidates: list[Candidate], model: ModelShape) -> list[Candidate]:
    """The candidates, and last the policy that leaves a model as it is, unless one of them has its name."""
    name, policy = baseline(model)
    return candidates if any(own.name == name for own in candidates) else [*candidates, Candidate(name, policy)]


class Loops:
    """A model and a text to run under several sets of policies; the weights are loaded once, when needed.

    Args:
        model: as for `evaluate`.
        text: as for `evaluate`.
        reading: tokens to read, and the length of windows.
        batch: windows that go through the model together.
        keep_dense: whether to keep the hidden states of the dense pass, tokens x hidden size x 4 bytes, for later runs.
        progress: callback, receives the progress.

    Raises:
        HwsimError: the model or the text cannot be loaded.
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
        self._rules: Rules | None = None  # of the routers of a mixture of experts
        self._lora: Path | None = None
        self._dense: dict[int, Any] | None = {} if keep_dense else None

    def run(
        self, conditions: Conditions, candidates: list[Candidate], *, masks: MaskWriter | None = None,
        watch: Watch | None = None,
    ) -> list[Evaluation]:  # fmt: skip
        """Evaluate one set of policies, as `evaluate`.

        Args:
            conditions: as for `evaluate`; the adapter, if any, must be the same in all runs.
            candidates: the policies.
            masks: writer that saves the masks.
            watch: callback, receives the scores after each pass; if it returns False, the run ends without results.

        Raises:
            HwsimError: as `evaluate`.
        """
        ready, settings = self.ready, conditions.settings
        if settings.lora:
            ready.header.model.check_dense("--lora")
        origin = {
            "name": ready.header.provenance["text"]["name"],
            "origin": "closed loop",
            "provenance": ready.header.provenance,
        }
        source = Source(ready.header, origin)
        runs = [conditions.run(source, candidate.policy, candidate.name) for candidate in candidates]
        for run in runs:
            run.check()  # also refuses shares that need a replay of a trace
        if self._loaded is None:
            self._loaded = ready.load(self._tell)
        if settings.lora and self._carried is None:
            self._carried, self._lora = carry(self._loaded, settings.lora, ready.source.name), settings.lora
        if settings.lora and settings.lora != self._lora:
            raise SettingError(f"--lora {settings.lora}: the model carries {self._lora}; one adapter at a time")
        layers = self._carried.layers if self._carried else self._loaded.layers
        if self._rules is None and any(run.placement.plans.sparse for run in runs):
            with told_as(f"--model {ready.source.name}: cannot be run"):
                self._rules = find_rules(self._loaded.model, layers, ready.libraries.torch)
        loops = [_Loop(run, _closed_loop(ready, run, layers, self._rules, masks)) for run in runs]
        if masks:
            masks.begin(ready.header, runs[0].masking, runs[0].placement)
        if self._runner is None:
            self._runner = Runner(self._loaded.model, ready.libraries)
            with told_as(f"--model {ready.source.name}: cannot be run"):
                self._runner.check_causal()
        try:
            with told_as(f"--model {ready.source.name}: cannot be run"):
                carried = self._carried if settings.lora else None
                whole = self._passes(self._runner, loops, carried, self._loaded.from_disk, watch)
            if not whole:
                return []
            if masks:
                masks.finish()
        finally:
            if masks:
                masks.discard()
        return [_result(loop) for loop in loops]

    def _passes(
        self, runner: Runner, loops: list[_Loop], carried: Carried | None, from_disk: bool, watch: Watch | None
    ) -> bool:
        ready, settings, total = self.ready, self.ready.settings, self.ready.settings.tokens
        work, done = (len(loops) + 1) * total, 0
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
            for loop in loops:
                if loop.run.placement.plans:
                    hiddens.append(_masked(runner, loop, carried, ids, sequences, first))
                else:
                    hiddens.append(dense)
                    loop.loop.window(sequences, first)
                    loop.counts.append(loop.loop.counts())
                step(loop.run.names.policy)
            scores = [loop.score for loop in loops]
            score(runner, ids, settings.prompt, dense, hiddens, scores)
            if watch and not watch(scores):
                return False
        return True

    def close(self) -> None:
        """Remove the hooks from the model."""
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


def _closed_loop(
    ready: Prepared, run: Run, layers: list[Layer], rules: Rules | None, masks: MaskWriter | None
) -> ClosedLoop:
    fast = worth_compiling(ready.settings.tokens * len(list(run.placement.plans)))
    return ClosedLoop(
        layers, run.masking, [masks] if masks else [], together=run.together, rules=rules, fast=fast
    )  # fmt: skip


def _masked(
    runner: Runner, loop: _Loop, carried: Carried | None, ids: np.ndarray, sequences: list[Sequence], first: int
) -> Any:
    """Hidden states of windows under a policy, ``[windows, tokens, hidden]``."""
    if not loop.by_token and not (carried and sequences[0].prompt):
        loop.loop.window(sequences, first)
        try:
            with carried or nullcontext(), loop.loop:
                hidden = runner.hidden(ids)
        except BlindError:
            if not loop.run.placement.shared or loop.run.eviction.needs_future:
                raise
            loop.loop, loop.by_token = loop.loop.by_token(), True
            return _masked(runner, loop, carried, ids, sequences, first)
        loop.counts.append(loop.loop.counts())
        return hidden
    return runner.torch.cat(
        [
            _in_pieces(runner, loop, carried, window, sequence, number)
            for number, (window, sequence) in enumerate(zip(ids, sequences, strict=True), first)
        ]
    )


def _in_pieces(
    runner: Runner, loop: _Loop, carried: Carried | None, ids: np.ndarray, sequence: Sequence, number: int
) -> Any:
    """Hidden states of one window whose prompt is read without masks and adapter, ``[1, tokens, hidden]``."""
    decoded = sequence.tokens - sequence.prompt
    loop.loop.begin(number)

    @contextmanager
    def masked(tokens: int) -> Iterator[None]:
        loop.loop.continued(tokens)
        with carried or nullcontext(), loop.loop:
            yield
        loop.counts.append(loop.loop.counts())

    @contextmanager
    def read(tokens: int) -> Iterator[None]:
        loop.loop.prompt(tokens)
        with loop.loop:
            yield
        loop.counts.append(loop.loop.counts())

    pieces = [1] * decoded if loop.by_token else [decoded]
    unmasked = read(sequence.prompt) if loop.loop.takes_prompts else nullcontext()
    prompt = [(sequence.prompt, unmasked)] if sequence.prompt else []
    return runner.in_pieces(ids, [*prompt, *((tokens, masked(tokens)) for tokens in pieces)])


def _result(loop: _Loop) -> Evaluation:
    result = measure(loop.run, Counts.joined(loop.counts))
    notes = [*result.notes, *loop.loop.notes]
    if loop.by_token:
        name = loop.run.names.policy
        notes.append(f"{name}: reads caches that groups share, so the model ran token by token for it.")
    result = result.model_copy(update={"notes": notes})
    return Evaluation(
        **dict(result),
        perplexity=loop.score.perplexity,
        dense_perplexity=loop.score.dense_perplexity,
        kl=loop.score.kl,
        top1=loop.score.top1,
        tokens_scored=loop.score.tokens,
    )
