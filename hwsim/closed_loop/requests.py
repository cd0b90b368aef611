"""The requests of lm-eval in the closed loop: each a sequence of its own, with empty caches at its start.

The model is lm-eval's own wrapper of a transformers model, one request at a time, so that tokens, cuts, stops and
scores are lm-eval's. Two of its methods are met on the way: a forward pass over a whole sequence, and a generation,
whose passes bring first the prompt and then token after token.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass, field
from typing import Any

from hwsim.closed_loop.carried import Carried
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.errors import ModelError, SettingError
from hwsim.masking.counts import Counts
from hwsim.trace import Sequence


class Passes:
    """Runs sequences under a policy and keeps what they asked of the caches.

    Args:
        loop: the policy and its caches.
        dense_prompt: prompts of generations are read densely, and are no part of the decode.
        tell: is called after each sequence.
        carried: an adapter of the model, on while tokens are masked.

    Attributes:
        sequences: that were decoded, in order.
    """

    def __init__(
        self, loop: ClosedLoop, *, dense_prompt: bool, tell: Callable[[], None], carried: Carried | None = None
    ) -> None:
        self.sequences: list[Sequence] = []
        self._loop, self._dense_prompt, self._tell = loop, dense_prompt, tell
        self._carried = carried or nullcontext()
        self._counts: list[Counts] = []
        self._number = 0
        self._stdout = sys.stdout  # lm-eval is kept quiet, a policy that prints is not

    @contextmanager
    def whole(self, tokens: int) -> Iterator[None]:
        """One forward pass, over a sequence of `tokens` tokens."""
        sequence = Sequence(tokens=tokens)
        self._loop.window([sequence], self._number)
        with self._carried, self._loop, redirect_stdout(self._stdout):
            yield
        self._keep(sequence, [self._loop.counts()])

    @contextmanager
    def pieces(self, model: Any) -> Iterator[None]:
        """Forward passes that bring one sequence piece by piece: its prompt, then token after token."""
        lengths: list[int] = []
        counts: list[Counts] = []
        self._loop.begin(self._number)
        with ExitStack() as hooks, ExitStack() as attached, redirect_stdout(self._stdout):

            def before(module: Any, args: Any, options: dict[str, Any]) -> None:
                windows, tokens = options["input_ids"].shape
                if windows != 1:
                    raise ModelError(
                        "a task asks for several texts at once, such as beams; one can be decoded at a time"
                    )
                lengths.append(tokens)
                if not self._densely(lengths):
                    self._loop.continued(tokens)
                    attached.enter_context(self._carried)
                    attached.enter_context(self._loop)

            def after(module: Any, args: Any, result: Any) -> None:
                attached.close()
                if not self._densely(lengths):
                    counts.append(self._loop.counts())

            hooks.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(model.register_forward_hook(after).remove)
            yield
        prompt = lengths[0] if self._dense_prompt else 0
        self._keep(Sequence(tokens=sum(lengths), prompt=prompt) if counts else None, counts)

    def counts(self) -> Counts:
        """Of all sequences."""
        return Counts.joined(self._counts)

    def _densely(self, lengths: list[int]) -> bool:
        return self._dense_prompt and len(lengths) == 1

    def _keep(self, sequence: Sequence | None, counts: list[Counts]) -> None:
        """`sequence` is None where the prompt alone was read, and densely."""
        self._number += 1
        if sequence:
            self.sequences.append(sequence)
            self._counts += counts
        self._tell()


def masked_model(model: Any, tokenizer: Any, passes: Passes) -> Any:
    """The model as lm-eval takes it, running under a policy.

    Args:
        model: of transformers, with the layers that the loop in `passes` is attached to.
        tokenizer: of the model.
        passes: where it runs.
    """
    from lm_eval.models.huggingface import HFLM

    class Masked(HFLM):  # type: ignore[misc]
        """lm-eval's own class; its batches are of one request, so nothing is padded."""

        def _model_call(self, inps: Any, *args: Any, **options: Any) -> Any:
            with passes.whole(inps.shape[1]):
                return super()._model_call(inps, *args, **options)

        def _model_generate(self, context: Any, *args: Any, **options: Any) -> Any:
            with passes.pieces(self.model):
                return super()._model_generate(context, *args, **options)

    return Masked(pretrained=model, tokenizer=tokenizer, batch_size=1)


@dataclass
class Plan:
    """What requests will ask of the model, known before it runs.

    Attributes:
        passes: sequences that the model will read; requests that read the same tokens share one.
        longest: tokens of the longest sequence at most.
        cut: requests that are longer than the model can read, so that lm-eval cuts their beginnings off.
        generates: names of the tasks that generate.
        highest: the highest token id.
    """

    passes: int = 0
    longest: int = 1
    cut: int = 0
    generates: set[str] = field(default_factory=set)
    highest: int = 0

    def read(self, ids: list[int], most: int, more: int = 0) -> None:
        """A sequence of `ids` that is cut to the last `most`, and `more` tokens that will follow."""
        self.longest = max(self.longest, min(len(ids), most) + more)
        self.cut += len(ids) > most
        self.highest = max(self.highest, *ids)


def plan_requests(model: Any, tokenizer: Any, requests: dict[str, list[Any]]) -> Plan:
    """Let lm-eval make tokens of all requests, without running the model.

    Args:
        model: of transformers.
        tokenizer: of the model.
        requests: lm-eval's instances, by the method that serves them.

    Raises:
        SettingError: a task wants to generate more than the model can read.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    plan = Plan()

    class Planned(HFLM):  # type: ignore[misc]
        """Answers nothing and takes notes."""

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> list[tuple[float, bool]]:
            read = {(*context, *continuation[:-1]) for _, context, continuation in requests}
            plan.passes += len(read)
            for ids in read:
                plan.read(list(ids), self.max_length)
            plan.highest = max([plan.highest, *(token for each in requests for token in each[2])])
            return [(0.0, False)] * len(requests)

        def generate_until(self, requests: Any, *args: Any, **options: Any) -> list[str]:
            for request in requests:
                context, wanted = request.args
                wanted = normalize_gen_kwargs(wanted, self.max_gen_toks)
                ids, most = self.tok_batch_encode([context])[0][0].tolist(), self.max_length - wanted["max_gen_toks"]
                if most < 1:
                    raise SettingError(
                        f"--tasks {request.task_name}: generates up to {wanted['max_gen_toks']} tokens, the model "
                        f"reads at most {self.max_length}; give the task a smaller max_gen_toks"
                    )
                plan.generates.add(str(request.task_name))
                plan.passes += 1
                # the last token that is generated is never read
                plan.read(ids, most, max(wanted["max_gen_toks"], wanted.get("max_length", 0) - len(ids)) - 1)
            return [""] * len(requests)

    planned = Planned(pretrained=model, tokenizer=tokenizer, batch_size=1)
    for method, instances in requests.items():
        getattr(planned, method)([each for each in instances for _ in range(each.repeats or 1)])
    return plan
