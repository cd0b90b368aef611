"""Tuning study: trials are closed loops that Optuna keeps in SQLite; its result is the fastest trial in each loss."""

from __future__ import annotations

import contextlib
import json
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from hwsim.closed_loop import Candidate, Loops
from hwsim.device.profile import Profile
from hwsim.errors import SettingError, one_line
from hwsim.memory.shares import parse_shares
from hwsim.record import Settings as Reading
from hwsim.simulation.metrics import Evaluation
from hwsim.simulation.options import make_policy
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.run import Conditions
from hwsim.simulation.settings import Settings
from hwsim.studies.tune.alone import alone
from hwsim.studies.tune.space import Point, settings_of, suggest, uniform
from hwsim.util.files import write_atomic
from hwsim.util.units import show_number

BASE_DENSITIES = (0.6, 0.7, 0.8, 0.9)
BASE_GAMMA = 0.2  # the authors' gamma
_HOPELESS = 2.0  # multiple of the greatest loss above which a trial is ended early

_CALLED = {
    "source": "model or text", "device": "--hw", "dram": "--dram", "lora": "--lora", "overlap": "--overlap",
    "bits": "--bits", "low": "--least-density", "greatest_loss": "greatest --loss", "seed": "--seed",
    "space": "version of hwsim",
}  # fmt: skip

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Goal:
    """The goal of tuning.

    Attributes:
        model: the model, as for `hwsim.closed_loop.evaluate`.
        text: text to tune on; evaluate on another.
        reading: tokens to read, and the length of windows.
        profile: the device.
        settings: DRAM and other settings; `lora` is the adapter that may be on or off.
        losses: allowed increases of perplexity above dense.
        low: least MLP density.
    """

    model: str
    text: str
    reading: Reading
    profile: Profile
    settings: Settings
    losses: tuple[float, ...] = (0.1, 0.2, 0.5)
    low: float = 0.4

    def __post_init__(self) -> None:
        """Refuse impossible losses and densities."""
        if not self.losses or any(not 0 < loss < 1e6 for loss in self.losses):
            raise SettingError(f"--loss {','.join(map(str, self.losses))}: must be numbers above 0")
        if not 0 < self.low < 0.98:
            raise SettingError(f"--least-density {self.low}: must be above 0 and below 0.98")


@dataclass
class Tuned:
    """Result of a study.

    Attributes:
        trials: number of trials with a result.
        now: number of trials that were run now.
        best: by loss: the fastest trial within it, with its settings and numbers, or None.
        base: the same among trials of DIP-CA with one density, the authors' split and gamma.
        dense: perplexity of the dense model.
        front: the Pareto front of perplexity and tokens/s, by rising perplexity.
    """

    trials: int
    now: int
    dense: float
    best: dict[float, dict[str, Any] | None] = field(default_factory=dict)
    base: dict[float, dict[str, Any] | None] = field(default_factory=dict)
    front: list[dict[str, Any]] = field(default_factory=list)


def tune(goal: Goal, study: Path, trials: int, *, seed: int = 0, progress: Progress | None = None) -> Tuned:
    """Run trials and return the result; an existing study is continued.

    Args:
        goal: the goal of tuning.
        study: SQLite file in which Optuna keeps the trials.
        trials: total number of trials, including those of earlier calls.
        seed: seed of the search.
        progress: callback, receives the progress.

    Raises:
        SettingError: Optuna is not installed, or the study has another goal.
        HwsimError: the model or the text cannot be loaded.
    """
    try:
        import optuna
    except ImportError as error:
        raise SettingError("tuning needs optuna: pip install 'hwsim[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.CRITICAL)  # errors are printed as one line
    tell = progress or (lambda phase, done, total: None)
    with alone(study), Loops(goal.model, goal.text, goal.reading, keep_dense=True, progress=tell) as loops:
        model = loops.ready.header.model
        opened = _open(optuna, study, _about(goal, loops.ready.header.provenance, seed))
        before = len(_ended(optuna, opened))
        for number in range(before, trials):
            tell("trials", number, trials)
            opened.sampler = _sampler(optuna, goal, number, seed)
            with _kept(optuna, study):
                opened.optimize(_objective(optuna, loops, goal, base=number < len(BASE_DENSITIES)), n_trials=1)
        tell("trials", trials, trials)
        return _answer(optuna, opened, goal, model, max(0, trials - before))


@contextlib.contextmanager
def _kept(optuna: Any, path: Path) -> Iterator[None]:
    """A context in which the error that a trial could not be kept becomes one line."""
    try:
        yield
    except Exception as error:
        # Optuna asserts that the trial's state was kept while it handles the error that it was not
        cause = error.__context__ if isinstance(error, AssertionError) else error
        if isinstance(cause, optuna.exceptions.StorageInternalError):
            raise SettingError(
                f"--study {path}: cannot be written any more; was it deleted, or is the disk full? The same command "
                "goes on with the trials that are there"
            ) from error
        raise


def _objective(optuna: Any, loops: Loops, goal: Goal, *, base: bool) -> Callable[[Any], tuple[float, float]]:
    model, adapter = loops.ready.header.model, goal.settings.lora is not None

    def objective(trial: Any) -> tuple[float, float]:
        point = suggest(trial, goal.low, adapter=adapter)
        result = _run(loops, goal, point, settings_of(point, model))
        if result is None:
            raise optuna.TrialPruned
        for key in ("perplexity", "dense_perplexity", "kl", "throughput_tok_s", "hit_rate", "mlp_density"):
            trial.set_user_attr(key, getattr(result, key))
        trial.set_user_attr("base", base)
        return result.perplexity - result.dense_perplexity, result.throughput_tok_s

    return objective


def _sampler(optuna: Any, goal: Goal, number: int, seed: int) -> Any:
    """The sampler of one trial: a function of its number, the seed and the trials that ended before.

    So a search that was killed and continued gives the same result as an uninterrupted one.
    """
    adapter = goal.settings.lora is not None
    first = [(density, gamma, False) for gamma in (BASE_GAMMA, 1.0) for density in BASE_DENSITIES]
    if adapter:
        first += [(density, BASE_GAMMA, True) for density in BASE_DENSITIES]
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", optuna.exceptions.ExperimentalWarning
        )  # both classes have been experimental for years
        sampler = optuna.samplers.TPESampler(seed=(seed * 1_000_003 + number) % 2**32, multivariate=True)
        if number >= len(first):
            return sampler
        density, gamma, on = first[number]
        point = uniform(density, gamma, adapter=on if adapter else None)
        return optuna.samplers.PartialFixedSampler(point, sampler)


def _ended(optuna: Any, study: Any) -> list[Any]:
    """The trials that count, in order; trials of a killed run do not count."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED)
    ended: list[Any] = study.get_trials(deepcopy=False, states=states)
    return ended


def _about(goal: Goal, provenance: dict[str, Any], seed: int) -> dict[str, Any]:
    """Everything that decides the results of trials, to identify the study."""
    return {
        "source": provenance,
        "device": goal.profile.model_dump(mode="json", exclude_none=True),
        "dram": str(goal.settings.dram),
        "lora": str(goal.settings.lora) if goal.settings.lora else None,
        "overlap": goal.settings.overlap,
        "bits": goal.settings.bits.model_dump(),
        "low": goal.low,
        "greatest_loss": max(goal.losses),
        "seed": seed,
        "space": 3,  # 2: with shares of the cache; 3: closer to the authors' settings
    }


def _open(optuna: Any, path: Path, about: dict[str, Any]) -> Any:
    try:
        opened = optuna.create_study(
            storage=optuna.storages.RDBStorage(f"sqlite:///{path}"),
            study_name="hwsim",
            directions=["minimize", "maximize"],
            load_if_exists=True,
        )
    except Exception as error:  # SQLAlchemy has many kinds of errors
        if path.is_file() and not path.read_bytes()[:16].startswith(b"SQLite format 3"):
            raise SettingError(f"--study {path}: is no study but another file; name a new one, or a study") from error
        raise SettingError(f"--study {path}: cannot be used: {one_line(error)[:120]}") from error
    text = json.dumps(about, sort_keys=True)
    kept = opened.user_attrs.get("about")
    if kept is not None and kept != text:
        differ = sorted(_CALLED.get(key, key) for key in about if json.loads(kept).get(key) != json.loads(text)[key])
        raise SettingError(
            f"--study {path}: is of another {', '.join(differ)}; name another file, or tune for the same"
        )
    opened.set_user_attr("about", text)
    state = optuna.trial.TrialState
    for trial in opened.get_trials(
        deepcopy=False, states=(state.RUNNING,)
    ):  # no other process runs it, so it was killed
        opened.tell(trial.number, state=state.FAIL)
    return opened


def _run(loops: Loops, goal: Goal, point: Point, chosen: dict[str, Any]) -> Evaluation | None:
    """Run one trial; None if its loss is hopeless."""
    name, kind = POLICIES.find(chosen["policy"])
    rule = EVICTIONS.make(chosen["eviction"])[1]
    settings = goal.settings if point.get("lora") else goal.settings.but(lora=None, lora_merged=False)
    if "cache_shares" in chosen:
        settings = settings.but(cache_shares=parse_shares(chosen["cache_shares"]))
    most = _HOPELESS * max(goal.losses) + 1

    def hopeful(scores: list[Any]) -> bool:
        return all(score.perplexity - score.dense_perplexity <= most for score in scores)

    policy = make_policy(name, kind, chosen["set"], chosen["density"])
    conditions = Conditions(goal.profile, rule, settings, chosen["eviction"])
    results = loops.run(conditions, [Candidate(name, policy)], watch=hopeful)
    return results[0] if results else None


def _answer(optuna: Any, study: Any, goal: Goal, model: Any, now: int) -> Tuned:
    complete = {
        number: trial
        for number, trial in enumerate(_ended(optuna, study))
        if trial.state == optuna.trial.TrialState.COMPLETE
    }
    if not complete:
        raise SettingError("no trial came to an end: the device or the losses leave nothing to try; allow more loss")
    tuned = Tuned(len(complete), now, next(iter(complete.values())).user_attrs["dense_perplexity"])
    tuned.front = [_about_trial(number, trial, goal, model) for number, trial in _front(complete)]
    base = {number: trial for number, trial in complete.items() if trial.user_attrs.get("base")}
    for loss in goal.losses:
        tuned.best[loss] = _fastest(complete, loss, goal, model)
        tuned.base[loss] = _fastest(base, loss, goal, model)
    return tuned


def _fastest(trials: dict[int, Any], loss: float, goal: Goal, model: Any) -> dict[str, Any] | None:
    within = [number for number, trial in trials.items() if trial.values[0] <= loss]
    if not within:
        return None
    number = max(within, key=lambda number: trials[number].values[1])
    return _about_trial(number, trials[number], goal, model)


def _front(trials: dict[int, Any]) -> Iterator[tuple[int, Any]]:
    """Yield the Pareto front of perplexity and speed: each trial costs more than the one before, and is faster."""
    fastest = 0.0
    for number, trial in sorted(trials.items(), key=lambda item: (item[1].values[0], -item[1].values[1])):
        if trial.values[1] > fastest:
            fastest = trial.values[1]
            yield number, trial


def _about_trial(number: int, trial: Any, goal: Goal, model: Any) -> dict[str, Any]:
    chosen = settings_of(trial.params, model)
    if goal.settings.dram is not None:
        chosen["dram"] = str(goal.settings.dram)
    if trial.params.get("lora"):
        chosen |= {"lora": str(goal.settings.lora), "lora_merged": goal.settings.lora_merged}
    numbers = {key: value for key, value in trial.user_attrs.items() if key != "base"}
    return {"trial": number, "settings": chosen, **numbers}


def write_settings(path: Path, found: dict[str, Any], about: str) -> None:
    """Write the settings of a trial as a file for `replay`, `eval` and `sweep`.

    Raises:
        OutputError: the file cannot be written.
    """
    lines = "".join(f"# {line}\n" for line in about.splitlines())
    one = found["settings"]
    # in a sweep a list means several values, so a value with a number for each layer is a list in a list
    lists = {key: [one[key]] for key in ("density", "cache_shares") if key in one}
    grid = one | lists | {"set": {key: [value] for key, value in one["set"].items()}}
    write_atomic(path, lines + yaml.safe_dump(grid, sort_keys=False, default_flow_style=None, width=118))


def told(found: dict[str, Any]) -> str:
    """A trial in one line: number, tokens/s, loss and density."""
    cost, speed = found["perplexity"] - found["dense_perplexity"], found["throughput_tok_s"]
    density = found["mlp_density"]
    return f"trial {found['trial']}: {show_number(speed)} tokens/s at {cost:+.3f} perplexity, MLP density {density:.3f}"
