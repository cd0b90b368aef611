"""Running a causal language model over whole windows, without ever holding the logits of all tokens."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from hwsim.errors import ModelError
from hwsim.record.extras import Libraries

_CAUSAL = 16  # tokens that show whether a model is causal
_LOGITS = 2**26  # values of a block of logits: 256 MiB in float32


class Runner:
    """Runs a causal language model over windows.

    The logits of a pass are computed in blocks, by the model's own forward function, whose decoder returns hidden
    states that were computed before. So logits are scaled, capped and biased as the model does it.
    """

    def __init__(self, model: Any, libraries: Libraries) -> None:
        self.model, self.torch = model, libraries.torch
        self._hidden: Any = None
        self._given: Any = None  # hidden states that the decoder returns in place of its own
        self._output: Any = None  # what the decoder returned last
        self._body: Any = None  # the module whose hidden states the LM head takes: of all bodies the outermost that ran
        parts = (model.base_model, model.get_decoder(), *model.children())
        bodies = {id(part): part for part in parts if part not in (model, model.get_output_embeddings())}
        self._handles = [body.register_forward_hook(self._keep) for body in bodies.values()]
        keep = inspect.signature(type(model).forward).parameters
        self._last = "logits_to_keep" in keep

    def remove(self) -> None:
        """Take the hook off."""
        for handle in self._handles:
            handle.remove()

    def tensor(self, ids: np.ndarray) -> Any:
        """Token ids as a tensor on the model's device."""
        device = self.model.get_input_embeddings().weight.device
        return self.torch.as_tensor(ids, dtype=self.torch.long, device=device)

    def hidden(self, ids: np.ndarray) -> Any:
        """The last hidden states of one forward pass, after the final norm.

        Args:
            ids: int ``[windows, tokens]``.

        Returns:
            A tensor ``[windows, tokens, hidden]``; `logits` turns it into logits.

        Raises:
            ModelError: the model computes its logits in a way that hwsim does not know.
        """
        with self.torch.inference_mode():
            hidden, model_logits = self.forward(ids)
            logits = self.logits(hidden[:, -1])
            # they may differ by rounding, as the matrices are cut into other blocks; 2 % covers bfloat16
            apart, size = float((logits - model_logits).abs().max()), float(model_logits.abs().max())
            if not np.isfinite(size):
                raise ModelError("the model's logits hold NaN or infinity, so its losses are no numbers")
            if not apart <= 0.02 * size:
                raise ModelError(
                    "the model makes its logits in a way that hwsim does not know, so losses would be wrong"
                )
        return hidden

    def check_causal(self) -> None:
        """Check that hidden states do not depend on what follows, on a few tokens read with and without the last half.

        Raises:
            ModelError: they do, so the model sees the tokens that it should predict.
        """
        half = _CAUSAL // 2
        ids = np.arange(_CAUSAL)[None] % self.model.get_input_embeddings().weight.shape[0]
        with self.torch.inference_mode():
            whole, part = (self.forward(ids[:, :count])[0][0, :half] for count in (_CAUSAL, half))
            by_token, size = (whole - part).abs().amax(-1), float(part.abs().max())
        exact = whole.dtype == self.torch.float32
        close = 1e-3 if exact else 5e-2  # rounding, in another order of the sums
        # a rounding can make a router choose another expert, which changes a token and those that see it; a model that
        # sees what follows changes all of them
        apart = float(by_token.max() if exact or not self._sparse() else by_token.min())
        if np.isfinite(apart) and apart > close * size:  # what is no number is refused where it is recorded
            raise ModelError(
                f"{type(self.model).__name__}: the hidden states of a text's first {half} tokens change with what "
                "follows, so it sees what it should predict (bidirectional attention); take is_causal or "
                "use_bidirectional_attention out of config.json, or choose a causal model"
            )

    def _sparse(self) -> bool:
        """Whether the model may have experts: stacks of matrices."""
        return any(parameter.ndim == 3 and min(parameter.shape) > 1 for parameter in self.model.parameters())

    def in_pieces(self, ids: np.ndarray, pieces: Iterable[tuple[int, AbstractContextManager[Any]]]) -> Any:
        """As `hidden`, for one window that is read in pieces, with a KV cache.

        Args:
            ids: int ``[tokens]``.
            pieces: for each piece its number of tokens and the context manager in which it is read.

        Returns:
            A tensor ``[1, tokens, hidden]``.
        """
        kv, past, hidden_states, start = kv_argument(self.model), None, [], 0
        with self.torch.inference_mode():
            for length, context in pieces:
                tokens = self.tensor(ids[None, start : start + length])
                options = {kv: past, **positions(self.model, start, length), **self._only_last(length)}
                with context:
                    past = self.model(input_ids=tokens, use_cache=True, **options)[kv]
                hidden_states.append(self._hidden)
                self._hidden, start = None, start + length
            return self.torch.cat(hidden_states, 1)

    def forward(self, ids: np.ndarray) -> tuple[Any, Any]:
        """One forward pass in the caller's autograd mode, so that training can differentiate it.

        Args:
            ids: int ``[windows, tokens]``.

        Returns:
            The last hidden states, ``[windows, tokens, hidden]``, and the logits of the last token.
        """
        tokens = self.tensor(ids)
        last = self.model(input_ids=tokens, use_cache=False, **self._only_last(tokens.shape[1])).logits[:, -1]
        hidden, self._hidden = self._hidden, None
        return hidden, last

    def logits(self, hidden: Any) -> Any:
        """Logits of some hidden states, ``[..., hidden]``, by the model's own function: ``[..., vocabulary]``."""
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        ids = self.torch.zeros(flat.shape[:2], dtype=self.torch.long, device=flat.device)
        if self._output is None:  # nothing has run yet: see what the decoder returns
            self.model(input_ids=ids[:, :1], use_cache=False)
        self._given = type(self._output)(last_hidden_state=flat)
        forward = self._body.forward
        self._body.forward = self._give
        try:
            logits = self.model(input_ids=ids, use_cache=False).logits
        finally:
            self._body.forward, self._given = forward, None
        return logits.reshape(*hidden.shape[:-1], logits.shape[-1])

    def blocks(self, tokens: int) -> Iterator[slice]:
        """Consecutive slices of `tokens` tokens; the logits of one slice fit in memory."""
        step = max(1, _LOGITS // self.model.get_output_embeddings().weight.shape[0])
        for start in range(0, tokens, step):
            yield slice(start, min(start + step, tokens))

    def losses(self, ids: np.ndarray) -> np.ndarray:
        """The loss of each token, from one forward pass.

        Args:
            ids: int ``[windows, tokens]``.

        Returns:
            float32 ``[windows, tokens]``, nats; NaN at the first token of each window, which nothing predicts.

        Raises:
            ModelError: as `hidden`.
        """
        hidden = self.hidden(ids)
        nats = np.full((len(ids), ids.shape[1] - 1), np.nan, np.float32).reshape(-1)
        with self.torch.inference_mode():
            flat, targets = hidden[:, :-1].reshape(-1, hidden.shape[-1]), self.tensor(ids)[:, 1:].reshape(-1)
            for block in self.blocks(len(flat)):
                logits = self.logits(flat[block]).float()
                loss = self.torch.nn.functional.cross_entropy(logits, targets[block], reduction="none")
                nats[block] = loss.cpu().numpy()
        if not np.isfinite(nats).all():
            raise ModelError(
                "the model's losses hold NaN or infinity; its weights are damaged, or --dtype is too small"
            )
        first = np.full((len(ids), 1), np.nan, np.float32)
        return np.concatenate([first, nats.reshape(len(ids), -1)], axis=1)

    def _only_last(self, tokens: int) -> dict[str, Any]:
        """Arguments by which the model computes the logits of the last token only, if it can leave the others out.

        The token is named by its number: given a count, some models leave the others out of their last layers, too.
        """
        return {"logits_to_keep": self.torch.tensor([tokens - 1])} if self._last else {}

    def _give(self, *args: Any, **options: Any) -> Any:
        return self._given

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        if self._given is None and hasattr(output, "last_hidden_state"):
            self._hidden, self._output, self._body = output[0], output, module


def check_causal(model: Any, libraries: Libraries) -> None:
    """Check that a model is causal, see `Runner.check_causal`."""
    runner = Runner(model, libraries)
    try:
        runner.check_causal()
    finally:
        runner.remove()


def positions(model: Any, start: int, tokens: int) -> dict[str, Any]:
    """The places of some tokens in their sequence as an argument of a forward pass, if the model takes it.

    Some models derive them wrongly from a cache whose first layer has a fixed state.
    """
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        return {}
    import torch

    device = model.get_input_embeddings().weight.device
    return {"position_ids": torch.arange(start, start + tokens, device=device)[None]}


def kv_argument(model: Any) -> str:
    """Name of the KV cache argument of a forward pass: ``cache`` from transformers 5.24, before ``past_key_values``."""
    return "cache" if "cache" in inspect.signature(type(model).forward).parameters else "past_key_values"
