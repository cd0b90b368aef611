"""The dense model's loss of each token, without ever holding the logits of all tokens."""

from __future__ import annotations

from typing import Any

import numpy as np

from hwsim.errors import ModelError
from hwsim.record.extras import Libraries

_LOGITS = 2**26  # values of a block of logits: 256 MiB in float32


class Losses:
    """Runs a causal language model over windows and returns its losses.

    Logits are made from the last hidden states in blocks; the model itself makes those of the last token only, and
    ours are checked against them.
    """

    def __init__(self, model: Any, libraries: Libraries) -> None:
        self._model, self._torch = model, libraries.torch
        self._hidden: Any = None
        self._handle = model.get_decoder().register_forward_hook(self._keep)

    def remove(self) -> None:
        """Take the hook off."""
        self._handle.remove()

    def run(self, ids: np.ndarray) -> np.ndarray:
        """One forward pass.

        Args:
            ids: int ``[windows, tokens]``.

        Returns:
            float32 ``[windows, tokens]``, nats; NaN at the first token of each window, which nothing predicts.

        Raises:
            ModelError: the model scales its logits in a way that is not known here.
        """
        torch = self._torch
        tokens = torch.as_tensor(ids, dtype=torch.long, device=self._model.get_input_embeddings().weight.device)
        with torch.inference_mode():
            last = self._model(input_ids=tokens, use_cache=False, logits_to_keep=1).logits[:, -1]
            hidden, self._hidden = self._hidden, None
            ours = self._logits(hidden[:, -1])
            # apart by no more than how a matrix is cut into blocks: 2 % of the spread covers bfloat16
            if float((ours - last).abs().max()) > 0.02 * float(last.abs().max()):
                raise ModelError(
                    "the model makes its logits in a way that hwsim does not know, so losses would be wrong"
                )
            flat, wanted = hidden[:, :-1].reshape(-1, hidden.shape[-1]), tokens[:, 1:].reshape(-1)
            step = max(1, _LOGITS // self._model.get_output_embeddings().weight.shape[0])
            pieces = [
                torch.nn.functional.cross_entropy(
                    self._logits(flat[at : at + step]).float(), wanted[at : at + step], reduction="none"
                ).cpu()
                for at in range(0, len(flat), step)
            ]
        nats = torch.cat(pieces).numpy() if pieces else np.empty(0, np.float32)
        first = np.full((len(ids), 1), np.nan, np.float32)
        return np.concatenate([first, nats.reshape(len(ids), -1)], axis=1)

    def _keep(self, module: Any, args: Any, output: Any) -> None:
        self._hidden = output[0]

    def _logits(self, hidden: Any) -> Any:
        config = self._model.config.get_text_config()
        logits = self._model.get_output_embeddings()(hidden)
        if cap := getattr(config, "final_logit_softcapping", None):  # Gemma 2
            logits = cap * self._torch.tanh(logits / cap)
        logits = logits * (getattr(config, "logit_scale", None) or 1.0)  # Cohere
        return logits / (getattr(config, "logits_scaling", None) or 1.0)  # Granite
