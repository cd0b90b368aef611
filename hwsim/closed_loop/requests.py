"""The requests of lm-eval in the closed loop: each is a separate sequence, with empty caches at its start.

The model is lm-eval's own wrapper of a transformers model, with one request at a time, so that tokens, cuts, stops and
scores are lm-eval's. Two of its methods are intercepted: a forward pass over a whole sequence, and a generation, whose
passes are first the prompt and then token after token.
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
    """Runs sequences under a policy and keeps their counts of requests and hits.

    Args:
        loop: the policy and its caches.
        dense_prompt: whether prompts of generations are read densely, as no part of the decode.
        tell: callback, called after each sequence.
        carried: adapter of the model, which is on while tokens are masked.

    Attributes:
        sequences: decoded sequences, in order.
    """

    def __init__(
        self, loop: ClosedLoop, *, dense_prompt: bool, tell: Callable[[], None], carried: Carried | None = None
    ) -> None:
        self.sequences: list[Sequence] = []
        self._loop, self._dense_prompt, self._tell = loop, dense_prompt, tell
        self._carried = carried or nullcontext()
        self._counts: list[Counts] = []
        self._number = 0
        self._stdout = sys.stdout  # lm-eval's output is suppressed, but not that of a policy

    @contextmanager
    def whole(self, tokens: int) -> Iterator[None]:
        """A context for one forward pass over a sequence of `tokens` tokens."""
        sequence = Sequence(tokens=tokens)
        self._loop.window([sequence], self._number)
        with self._carried, self._loop, redirect_stdout(self._stdout):
            yield
        self._keep(sequence, [self._loop.counts()])

    @contextmanager
    def pieces(self, model: Any) -> Iterator[None]:
        """A context for the forward passes of one sequence: its prompt, then token after token."""
        lengths: list[int] = []
        counts: list[Counts] = []
        prompts: list[Counts] = []
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
                elif self._loop.takes_prompts:
                    self._loop.prompt(tokens)
                    attached.enter_context(self._loop)

            def after(module: Any, args: Any, result: Any) -> None:
                attached.close()
                if not self._densely(lengths):
                    counts.append(self._loop.counts())
                elif self._loop.takes_prompts:
                    prompts.append(self._loop.counts())

            hooks.callback(model.register_forward_pre_hook(before, with_kwargs=True).remove)
            hooks.callback(model.register_forward_hook(after).remove)
            yield
        prompt = lengths[0] if self._dense_prompt else 0
        self._keep(Sequence(tokens=sum(lengths), prompt=prompt) if counts else None, [*prompts, *counts])

    def counts(self) -> Counts:
        """The counts of all sequences."""
        return Counts.joined(self._counts)

    def _densely(self, lengths: list[int]) -> bool:
        return self._dense_prompt and len(lengths) == 1

    def _keep(self, sequence: Sequence | None, counts: list[Counts]) -> None:
        """Keep a sequence and its counts; `sequence` is None if only a prompt was read, without masks."""
        self._number += 1
        if sequence:
            self.sequences.append(sequence)
            self._counts += counts
        self._tell()


def masked_model(model: Any, tokenizer: Any, passes: Passes) -> Any:
    """A model for lm-eval that runs under a policy.

    Args:
        model: a model of transformers whose layers the loop in `passes` is attached to.
        tokenizer: tokenizer of the model.
        passes: runs the sequences under the policy.
    """
    from lm_eval.models.huggingface import HFLM

    class Masked(HFLM):  # type: ignore[misc]
        """lm-eval's own class with batches of one request, so that nothing is padded."""

        def _model_call(self, inps: Any, *args: Any, **options: Any) -> Any:
            with passes.whole(inps.shape[1]):
                return super()._model_call(inps, *args, **options)

        def _model_generate(self, context: Any, *args: Any, **options: Any) -> Any:
            with passes.pieces(self.model):
                return super()._model_generate(context, *args, **options)

    return Masked(pretrained=model, tokenizer=tokenizer, batch_size=1)


@dataclass
class Plan:
    """Summary of the requests, known before the model runs.

    Attributes:
        passes: sequences that the model will read; requests that read the same tokens share one.
        longest: upper limit of the tokens of the longest sequence.
        cut: requests that are longer than the model can read, so that lm-eval cuts off their beginnings.
        generates: names of the tasks that generate.
        highest: the highest token id.
    """

    passes: int = 0
    longest: int = 1
    cut: int = 0
    generates: set[str] = field(default_factory=set)
    highest: int = 0

    def read(self, ids: list[int], most: int, more: int = 0) -> None:
        """Add a sequence of `ids` that is cut to the last `most`, with `more` tokens that will follow."""
        self.longest = max(self.longest, min(len(ids), most) + more)
        self.cut += len(ids) > most
        self.highest = max(self.highest, *ids)


def plan_requests(model: Any, tokenizer: Any, requests: dict[str, list[Any]]) -> Plan:
    """Let lm-eval tokenise all requests without running the model, and summarise them.

    Args:
        model: a model of transformers.
        tokenizer: tokenizer of the model.
        requests: lm-eval's instances by the method that serves them.

    Raises:
        SettingError: a task wants to generate more than the model can read.
    """
    from lm_eval.models.huggingface import HFLM
    from lm_eval.models.utils import normalize_gen_kwargs

    plan = Plan()

    class Planned(HFLM):  # type: ignore[misc]
        """Returns empty answers and fills the plan."""

        def _loglikelihood_tokens(self, requests: Any, *args: Any, **options: Any) -> list[tuple[float, bool]]:
            read = {(*context, *continuation[:-1]) for _, context, continuation in requests}
            plan.passes += len(read)
            for ids in read:
                plan.read(list(ids), self.max_length)
            plan.highest = max([plan.highest, *(token for request in requests for token in request[2])])
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
        getattr(planned, method)([instance for instance in instances for _ in range(instance.repeats or 1)])
    return plan
