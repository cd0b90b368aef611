"""LoRA: small matrices beside the MLP's own, trained to recover the quality that a policy's masks cost.

The method of arXiv 2412.01380: y = (m x) W + (m x) A B, the same input mask m for both, A drawn from a normal
distribution, B zero. The policy is in place while it trains, its caches included, and the dense model is the teacher:
the loss is the KL divergence of the policy's next-token distribution from the dense one's.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import hwsim
from hwsim.closed_loop.carried import Carried, check_in_memory, require_peft
from hwsim.closed_loop.evaluation import Candidate
from hwsim.closed_loop.masking import ClosedLoop
from hwsim.errors import ModelError, SettingError
from hwsim.masking.streams import worth_compiling
from hwsim.model.lora import matrices_of
from hwsim.record import Settings as TextSettings
from hwsim.record.extras import told_as
from hwsim.record.loading import Loaded
from hwsim.record.prepare import Prepared, Progress, prepare
from hwsim.simulation.run import Conditions, Run, Source, recorded
from hwsim.trace import Sequence
from hwsim.train.adapterfile import Partial, finished
from hwsim.train.trainer import Look, Trainer, Training


class Trained(NamedTuple):
    """Result of `train_lora`.

    Attributes:
        folder: of the adapter.
        resumed: steps that an earlier run had done; all of them if it had finished.
        dense_perplexity: of the dense model on the validation tokens.
        curve: looks at the validation tokens; the first is the policy without an adapter.
        best: the step whose adapter was kept.
        rank: of the adapter.
        parameters: of the adapter.
    """

    folder: Path
    resumed: int
    dense_perplexity: float
    curve: list[Look]
    best: int
    rank: int
    parameters: int

    @property
    def closed(self) -> float | None:
        """Share of the gap between the policy's perplexity and the dense one that the adapter closed; None: no gap."""
        before, after = self.curve[0].perplexity, next(look.perplexity for look in self.curve if look.step == self.best)
        gap = before - self.dense_perplexity
        return (before - after) / gap if gap > 0 else None

    def plain(self) -> dict[str, Any]:
        """The result as JSON data, without paths."""
        fields = self._asdict() | {"folder": self.folder.name, "curve": [look._asdict() for look in self.curve]}
        return {"format": "hwsim-training", "version": 1, "kind": "lora", **fields, "gap_closed": self.closed}


@dataclass(frozen=True)
class Target:
    """Where an adapter is written.

    Attributes:
        folder: folder to write: the files of peft's save_pretrained, and ``hwsim.json``.
        overwrite: replace an adapter that exists already, or was begun with other arguments.
        writes: other files that the caller is going to write; they may be neither the model's files nor the text.
    """

    folder: Path
    overwrite: bool = False
    writes: tuple[Path, ...] = ()


def train_lora(
    target: Target,
    model: str,
    text: str,
    conditions: Conditions,
    candidate: Candidate,
    training: Training | None = None,
    reading: TextSettings | None = None,
    *,
    progress: Progress | None = None,
) -> Trained:
    """Train an adapter for a model under a policy.

    Called again with the same arguments after a kill, it resumes; the result has the same bytes.

    Args:
        target: where it is written.
        model: as `hwsim.record.record` takes it.
        text: a UTF-8 file, or the name of a bundled text.
        conditions: as in a replay: the device, whose DRAM budget decides the size of the caches, the eviction, and the
            settings, of which DRAM, bits and seed count.
        candidate: the policy.
        training: how to train.
        reading: device, type and memory for the model, and whether its own code may run; its other fields are ignored.
        progress: callback that receives (phase, steps done, steps in all).

    Raises:
        HwsimError: a subclass.
    """
    training, settings, eviction = training or Training(), conditions.settings, conditions.eviction
    folder, overwrite = target.folder, target.overwrite
    tell = progress or (lambda phase, done, total: None)
    if eviction.needs_future:
        raise SettingError("--eviction: a rule that must know the future cannot be trained with; choose another")
    caches = settings.caches
    cache_settings = (settings.cache_scope, settings.cache_shares, settings.block, *vars(caches).values())
    if cache_settings != ("matrix", None, 1, None, None, None):
        raise SettingError("settings: an adapter is trained with equal caches of single units that begin empty")
    reading = replace(
        reading or TextSettings(),
        tokens=training.tokens + training.validation, context=training.context, prompt=0, signals=None,
    )  # fmt: skip
    require_peft()
    ready = prepare(model, text, reading, tell, writes=[folder, *target.writes])
    ready.header.model.check_dense("an adapter")
    header = recorded(
        ready.header.model, [Sequence(tokens=training.context)], ready.header.stored, ready.header.stored_unknown
    )
    run = conditions.run(Source(header, {}), candidate.policy, candidate.name)
    plans = run.placement.plans
    if not plans:
        raise SettingError(
            f"--policy {candidate.name}: masks nothing, so there is nothing to give back; choose another"
        )
    capacities = [min(plan.capacity for plan in group) for group in plans.by_name().values()]
    about = _about(ready, run, training, capacities)
    if (done := finished(folder, about, overwrite=overwrite)) is not None:
        return _trained(folder, done, training.steps)
    with Partial(folder, about, overwrite=overwrite) as partial:
        loaded = ready.load(tell)
        check_in_memory(loaded, ready.source.name)
        with told_as(f"--model {ready.source.name}: cannot be trained"):
            carried = _new_adapter(loaded, ready, training, settings.seed)
            fast = worth_compiling(training.tokens * len(list(plans)))
            loop = ClosedLoop(carried.layers, run.masking, fast=fast)
            trainer = Trainer(ready, carried, loop, training, settings.seed, partial)
            try:
                resumed = trainer.run(tell)
            finally:
                trainer.runner.remove()
            done = trainer.finish()
    return _trained(folder, done, resumed)


def _trained(folder: Path, done: dict[str, Any], resumed: int) -> Trained:
    curve = [Look(**look) for look in done["curve"]]
    return Trained(folder, resumed, done["dense_perplexity"], curve, done["best"], done["rank"], done["parameters"])


def _about(ready: Prepared, run: Run, training: Training, capacities: list[int]) -> dict[str, Any]:
    """Description of everything that decides the adapter; a training with any other value makes another adapter."""
    header = ready.header
    provenance = header.provenance
    return {
        "format": "hwsim-lora",
        "version": 1,
        "hwsim": hwsim.__version__,
        "model": header.model.model_dump(),
        "weights": provenance["weights"],
        **({"custom_code": provenance["custom_code"]} if "custom_code" in provenance else {}),
        "config_sha256": provenance["config_sha256"],
        "text": provenance["text"],
        "tokens_sha256": provenance["tokens_sha256"],
        "policy": {"name": run.names.policy, "parameters": run.policy.model_dump(mode="json")},
        "eviction": {"name": type(run.eviction).__name__, "parameters": run.eviction.model_dump(mode="json")},
        "capacities": capacities,
        "training": asdict(training),
        "seed": run.settings.seed,
        "tokens": training.tokens,
        "libraries": {"torch": provenance["torch"], "transformers": provenance["transformers"]},
        "device": ready.settings.device,
        "dtype": ready.settings.dtype,
    }


def _modules(loaded: Loaded, name: str) -> list[str]:
    """The names of the MLPs' modules as peft takes them: short where no other module has the same.

    Raises:
        ModelError: one has a name by which the adapter could not be read again.
    """
    wanted = {
        id(module) for layer in loaded.layers for module in (layer.gate, layer.up, layer.down) if module is not None
    }
    modules = dict(loaded.model.named_modules())
    names = [path for path, module in modules.items() if id(module) in wanted]
    inside = loaded.inventory.layers_name
    for path in names:
        parents, _, own = path.removeprefix(f"{inside}.").partition(".")[2].rpartition(".")
        if matrices_of(parents, own) is None:
            raise ModelError(
                f"--model {name}: {path}: hwsim knows no adapter of a module of this name; choose a model whose MLP "
                "has other names, such as up_proj or fc1"
            )
    short = {path.rpartition(".")[2] for path in names}
    alone = all(id(module) in wanted for path, module in modules.items() if path.rpartition(".")[2] in short)
    return sorted(short) if alone else sorted(names)


def _new_adapter(loaded: Loaded, ready: Prepared, training: Training, seed: int) -> Carried:
    import peft

    names = _modules(loaded, ready.source.name)
    ready.libraries.torch.manual_seed(seed)
    config = peft.LoraConfig(
        r=training.rank,
        lora_alpha=training.rank,  # y = x W + (x A) B, without a factor
        target_modules=names,
        init_lora_weights="gaussian",
        task_type="CAUSAL_LM",
    )
    # the model's own name, not where it lies on this machine
    config.base_model_name_or_path = ready.source.name
    wrapped = peft.get_peft_model(loaded.model, config)
    wrapped.peft_config["default"].base_model_name_or_path = ready.source.name
    return Carried(wrapped.eval(), loaded.inventory)
