"""Predictor-based pruning (DejaVu style): one small net per layer guesses, from the MLP's input, which neurons matter.

The file of trained nets is a ``.npz`` written by ``numpy.savez``: ``format`` = "hwsim-predictor", ``version`` = 1, and
for each layer, all float32, ``layers/000/w1`` [hidden, rank], ``b1`` [rank], ``w2`` [rank, intermediate] and ``b2``
[intermediate]; logits = relu(x w1 + b1) w2 + b2. A ``header`` of JSON, which ``hwsim train predictor`` writes, names
the ``model`` and the ``density`` that they were trained for; a file without it is taken as it is.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from hwsim.policy import Context, Field, Group, ModelShape, PluginError, Policy, read_arrays
from hwsim_policies.oracle import neurons

_PARTS = ("w1", "b1", "w2", "b2")
_SHAPE = ("num_hidden_layers", "hidden_size", "intermediate_size")


class Predictor(Policy):
    """Rows of gate and up and columns of down that trained nets predict from the MLP's input."""

    density: float = Field(0.5, gt=0, le=1, description="share of the MLP that a token reads, the nets counted")
    predictor: Path | None = Field(None, description="file of trained nets")
    force: bool = Field(False, description="use nets that were trained for another density or a model of another name")

    def groups(self, model: ModelShape) -> list[Group]:
        """One group: the bundle of a neuron's slices."""
        model = model.whole
        parameters = self.predictor_parameters(model)
        self._check_density()
        share = parameters / (model.num_hidden_layers * model.mlp_parameters)
        if share >= self.density:
            raise PluginError(
                f"density={self.density}: the nets alone are {share:.3g} of the MLP; choose a higher --density"
            )
        return [neurons(model, keep=self.density - share, needs=["input"])]

    def predictor_parameters(self, model: ModelShape) -> int:
        """Weights and biases of all nets."""
        if not self.predictor:
            raise PluginError(
                "give --set predictor=FILE (made by `hwsim train predictor`), or use noisy-oracle, which needs no file"
            )
        model = model.whole
        self._check_model(model)
        if len(self._nets) != model.num_hidden_layers:
            raise PluginError(
                f"{self.predictor}: has nets for {len(self._nets)} layers, the model has {model.num_hidden_layers}"
            )
        model.check_alike("--policy predictor")
        for layer, (w1, b1, w2, b2) in enumerate(self._nets):
            rank = len(b1)
            wanted = [(model.hidden_size, rank), (rank,), (rank, model.intermediate_size), (model.intermediate_size,)]
            if [part.shape for part in (w1, b1, w2, b2)] != wanted:
                raise PluginError(
                    f"{self.predictor}: layers/{layer:03d}: shapes do not fit the model; they must be {wanted}"
                )
        return sum(part.size for net in self._nets for part in net)

    def score(self, ctx: Context) -> np.ndarray:
        """The net's logits."""
        w1, b1, w2, b2 = self._nets[ctx.layer]
        logits: np.ndarray = np.maximum(ctx.signals["input"] @ w1 + b1, 0) @ w2 + b2
        return logits

    def _check_density(self) -> None:
        """The nets learnt masks of one size; others are guesses that nobody measured."""
        trained = self._header.get("density")
        if isinstance(trained, int | float) and abs(trained - self.density) > 1e-9 and not self.force:
            raise PluginError(
                f"{self.predictor}: was trained for density {trained:g}, asked is {self.density:g}; give --density "
                f"{trained:g}, train nets for {self.density:g} (hwsim train predictor TRACE --density {self.density:g} "
                "-o FILE), or use these all the same with --set force=true"
            )

    def _check_model(self, model: ModelShape) -> None:
        trained = self._header.get("model")
        if not isinstance(trained, dict):
            return
        for field in _SHAPE:
            there, here = trained.get(field), getattr(model, field)
            if there is not None and there != here:
                raise PluginError(
                    f"{self.predictor}: was trained for {trained.get('name')} with {field} {there}, {model.name} has "
                    f"{here}; train nets from a trace of this model: hwsim train predictor TRACE -o FILE"
                )
        name = trained.get("name")
        if name is not None and name != model.name and not self.force:
            raise PluginError(
                f"{self.predictor}: was trained for the model {name}, this one is called {model.name}; train nets from "
                "a trace of this model (hwsim train predictor TRACE -o FILE), or, where it is the same one, "
                "give --set force=true"
            )

    @property
    def _header(self) -> dict[str, Any]:
        return self._file[0]

    @cached_property
    def _file(self) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
        return read_arrays(Path(str(self.predictor)), "hwsim-predictor")

    @cached_property
    def _nets(self) -> list[tuple[np.ndarray, ...]]:
        path, members = Path(str(self.predictor)), self._file[1]
        layers = sum(name.endswith("/w1") for name in members)
        parts = [[f"layers/{layer:03d}/{part}" for part in _PARTS] for layer in range(layers)]
        missing = [name for names in parts for name in names if name not in members]
        if missing:
            raise PluginError(f"{path}: is no file of hwsim-predictor: it lacks the member {missing[0]!r}")
        nets = [tuple(members[name] for name in names) for names in parts]
        if any(part.dtype != np.float32 for net in nets for part in net):
            raise PluginError(f"{path}: all members must be float32")
        return nets
