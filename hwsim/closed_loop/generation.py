"""Generation: a model decodes token by token under a policy, with its KV cache and the unit caches."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from hwsim.closed_loop.carried import Carried, carry, require_peft
from hwsim.closed_loop.evaluation import Candidate
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.closed_loop.routing import find_rules
from hwsim.errors import SettingError
from hwsim.masking.counts import Counts
from hwsim.record import Settings as TextSettings
from hwsim.record.custom import code_provenance
from hwsim.record.extras import libraries, require_extra, told_as
from hwsim.record.loading import find_device, find_dtype, load_model, load_tokenizer, read_structure
from hwsim.record.prepare import Progress
from hwsim.record.runner import check_causal, kv_argument, positions
from hwsim.record.sources import find_source
from hwsim.record.stored import Found, find_stored
from hwsim.simulation.metrics import Result
from hwsim.simulation.result import measure
from hwsim.simulation.run import Conditions, Source, check_closed, recorded
from hwsim.trace import Sequence, TraceHeader


class Generated(NamedTuple):
    """The generated text and its result."""

    text: str  # without the prompt
    ids: list[int]
    result: Result | None  # of the masked tokens; None if the first token already was the end


class Stepper:
    """A model that reads a prompt without masks and then one token at a time under a policy.

    Args:
        model: a model of transformers.
        torch: the library.
        loop: the policy and its caches; the eviction must not need the future.
        carried: adapter of the model, which is on while tokens are masked.

    Attributes:
        prompts: requests and hits of the prompt, if it goes through the caches.
        counts: requests and hits of each masked token.
    """

    def __init__(self, model: Any, torch: Any, loop: ClosedLoop, carried: Carried | None = None) -> None:
        self._model, self._torch, self._loop, self._carried = model, torch, loop, carried
        self._past: Any = None
        self._read = 0  # tokens
        self._kv = kv_argument(model)
        self._keep = (
            {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(type(model).forward).parameters else {}
        )
        self.prompts: list[Counts] = []
        self.counts: list[Counts] = []

    def prefill(self, ids: list[int]) -> Any:
        """Read the prompt without masks and return the logits of the next token, ``[vocabulary]``."""
        self._loop.begin(0)
        if not self._loop.takes_prompts:
            return self._forward(ids)
        self._loop.prompt(len(ids))
        with self._loop:
            logits = self._forward(ids)
        self.prompts.append(self._loop.counts())
        return logits

    def step(self, token: int) -> Any:
        """Read one more token under masks and return the logits of the next one, ``[vocabulary]``."""
        self._loop.continued(1)
        with self._carried or nullcontext(), self._loop:
            logits = self._forward([token])
        self.counts.append(self._loop.counts())
        return logits

    def _forward(self, ids: list[int]) -> Any:
        device = self._model.get_input_embeddings().weight.device
        start = 0 if self._past is None else self._read
        with self._torch.inference_mode():
            tokens = self._torch.as_tensor([ids], dtype=self._torch.long, device=device)
            options = {self._kv: self._past, **positions(self._model, start, len(ids)), **self._keep}
            out = self._model(tokens, use_cache=True, **options)
        self._past, self._read = out[self._kv], start + len(ids)
        return out.logits[0, -1].float()


@dataclass(frozen=True)
class Writing:
    """How a model continues a prompt.

    Attributes:
        tokens: most tokens to generate; the first comes from the prompt, the others from masked tokens.
        chat: whether to put the prompt into the model's chat template.
        temperature: 0 takes the most likely token; otherwise tokens are drawn with the seed.

    Raises:
        SettingError: there are too few tokens.
    """

    tokens: int = 64
    chat: bool = False
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Refuse settings that decode no masked token."""
        if self.tokens < 2:
            raise SettingError(f"--tokens {self.tokens}: must be at least 2; the first comes from the prompt alone")


def generate(
    model: str,
    prompt: str,
    conditions: Conditions,
    candidate: Candidate,
    writing: Writing | None = None,
    reading: TextSettings | None = None,
    *,
    on_text: Callable[[str], None] | None = None,
    progress: Progress | None = None,
) -> Generated:
    """Let a model continue a prompt under a policy.

    Args:
        model: the model, as for `hwsim.record.record`.
        prompt: text that is read without masks before the decode begins.
        conditions: as for `hwsim.closed_loop.evaluate`.
        candidate: the policy.
        writing: number of tokens, and how they are chosen.
        reading: device, dtype and memory for the model, and whether its own code may run; its other fields are not
            used.
        on_text: callback, receives each new piece of text.
        progress: callback, receives the progress of loading.

    Raises:
        HwsimError: the model cannot be loaded, a setting is impossible, or a similar error.
    """
    reading, writing, settings = reading or TextSettings(), writing or Writing(), conditions.settings
    check_closed(settings)
    tell = progress or (lambda phase, done, total: None)
    if conditions.eviction.needs_future:
        raise SettingError("--eviction: a rule that must know the future cannot serve a generation; choose another")
    require_extra()
    if settings.lora:
        require_peft()
    source = find_source(model, reading.trust_remote_code)
    used = libraries()
    tell("loading the model", 0, 1)
    structure = read_structure(source, used)
    if settings.lora:
        structure.shape.check_dense("--lora")
    tokenizer = load_tokenizer(source, used)
    ids = _prompt_ids(tokenizer, prompt, writing.chat, source.name)
    if structure.longest is not None and len(ids) + writing.tokens > structure.longest:
        raise SettingError(
            f"--tokens {writing.tokens}: with the prompt's {len(ids)}, {source.name} reads at most "
            f"{structure.longest} tokens"
        )
    # the KV cache is reserved for the longest possible text
    origin = {"name": "a prompt", "origin": "generated", **code_provenance(source)}
    found = find_stored(source, structure, used) if settings.bits.stored else Found(None)

    def header(decoded: int) -> TraceHeader:
        return recorded(structure.shape, [Sequence(tokens=len(ids) + decoded, prompt=len(ids))], *found)

    expected = conditions.run(Source(header(writing.tokens - 1), origin), candidate.policy, candidate.name)
    expected.check()
    device = find_device(reading.device, used.torch)
    dtype = find_dtype(reading.dtype, device, structure)
    loaded = load_model(source, structure, used, device, dtype, reading.max_memory)
    carried = carry(loaded, settings.lora, source.name)
    tell("loading the model", 1, 1)
    layers, rules = carried.layers if carried else loaded.layers, None
    if expected.placement.plans.sparse:
        with told_as(f"--model {source.name}: cannot be run"):
            rules = find_rules(loaded.model, layers, used.torch)
    loop = ClosedLoop(layers, expected.masking, together=expected.together, rules=rules, steps=True)
    stepper = Stepper(loaded.model, used.torch, loop, carried)
    with told_as(f"--model {source.name}: cannot be run"):
        check_causal(loaded.model, used)
        choose = _chooser(writing.temperature, settings.seed)
        ends = _ends(loaded.model, tokenizer)
        generated = _decode(stepper, tokenizer, ids, writing.tokens, ends, choose, on_text)
    text = tokenizer.decode(generated, skip_special_tokens=True)
    if not stepper.counts:
        return Generated(text, generated, None)
    reserved = replace(conditions, settings=settings.but(kv_tokens=expected.placement.bytes.kv_tokens))
    run = reserved.run(Source(header(len(stepper.counts)), origin), candidate.policy, candidate.name)
    result = measure(run, Counts.joined([*stepper.prompts, *stepper.counts]))
    return Generated(text, generated, result.model_copy(update={"notes": [*result.notes, *loop.notes]}))


def _prompt_ids(tokenizer: Any, prompt: str, chat: bool, name: str) -> list[int]:
    with told_as(f"--model {name}: its tokenizer cannot read the prompt"):
        if chat:
            talk = [{"role": "user", "content": prompt}]
            prompt = tokenizer.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
        ids = list(tokenizer(prompt, add_special_tokens=not chat)["input_ids"])
    if not ids:
        raise SettingError("--prompt: is empty; give the model something to go on from")
    return ids


def _ends(model: Any, tokenizer: Any) -> set[int]:
    """The tokens that end a text: those of the model's generation_config, as in transformers, else the tokenizer's."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    named = tokenizer.eos_token_id if named is None else named
    return set(named) if isinstance(named, list) else {named}


def _chooser(temperature: float, seed: int) -> Callable[[Any], int]:
    rng = np.random.default_rng(seed)

    def choose(logits: Any) -> int:
        if temperature == 0:
            return int(logits.argmax())
        scaled = logits.cpu().double().numpy() / temperature
        chance = np.exp(scaled - scaled.max())
        return int(rng.choice(len(chance), p=chance / chance.sum()))

    return choose


def _decode(
    stepper: Stepper, tokenizer: Any, ids: list[int], tokens: int, ends: set[int], choose: Callable[[Any], int],
    on_text: Callable[[str], None] | None,
) -> list[int]:  # fmt: skip
    generated = [choose(stepper.prefill(ids))]
    shown = ""
    while True:
        text = tokenizer.decode(generated, skip_special_tokens=True)
        # a token may end in the middle of a character: wait for the rest
        if on_text and not text.endswith("\ufffd"):
            on_text(text[len(shown) :])
            shown = text
        if len(generated) == tokens or generated[-1] in ends:
            return generated
        generated.append(choose(stepper.step(generated[-1])))
