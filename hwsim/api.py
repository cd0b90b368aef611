"""The interface for Python and notebooks: what the commands do, with their names, defaults and errors.

from hwsim.version import __version__

trace = hwsim.load("sample")
result = hwsim.replay(trace, hw="pixel8", policy="dip-ca", density=0.5, dram="50%")
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from hwsim.device.profile import Profile, load_profile
from hwsim.errors import SettingError, did_you_mean
from hwsim.evictions import Eviction
from hwsim.policy import Policy
from hwsim.simulation.frames import Kind, frame, rows_of, to_html
from hwsim.simulation.metrics import Evaluation, Result
from hwsim.simulation.options import find_trace, make_policy, make_settings, takes_density
from hwsim.simulation.plugins import EVICTIONS, POLICIES, build
from hwsim.simulation.replay import replay as run
from hwsim.trace import Trace

if TYPE_CHECKING:
    pass

PolicyLike = str | Path | type[Policy] | Policy
"""A policy by its name or file, its class, or an instance."""
R = TypeVar("R", bound=Result)


class Results(list[R]):
    """Several results, which a notebook shows as one table."""

    def to_frame(self, kind: Kind = "summary") -> Any:
        """All of them as one DataFrame, as `Result.to_frame`."""
        return frame([row for each in self for row in rows_of(each.plain(), kind)])

    def _repr_html_(self) -> str:
        return to_html([each.plain() for each in self])


def load(trace: str | Path) -> Trace:
    """Open a trace.

    Args:
        trace: a file, or ``sample``, the recorded one that comes with hwsim.

    Raises:
        TraceError: there is none, or it is damaged.
    """
    return Trace(find_trace(trace))


@overload
def replay(
    trace: Trace | str | Path, hw: str | Path | Profile, policy: PolicyLike, *,
    density: float | str | Path | None = ..., eviction: str | Path | type[Eviction] | Eviction = ...,
    threads: int | None = ..., **options: Any,
) -> Result: ...  # fmt: skip


@overload
def replay(
    trace: Trace | str | Path, hw: str | Path | Profile, policy: Sequence[PolicyLike], *,
    density: float | str | Path | None = ..., eviction: str | Path | type[Eviction] | Eviction = ...,
    threads: int | None = ..., **options: Any,
) -> Results[Result]: ...  # fmt: skip


def replay(
    trace: Trace | str | Path,
    hw: str | Path | Profile,
    policy: PolicyLike | Sequence[PolicyLike],
    *,
    density: float | str | Path | None = None,
    eviction: str | Path | type[Eviction] | Eviction = "lfu",
    threads: int | None = None,
    **options: Any,
) -> Result | Results[Result]:
    """Replay a trace on a device under a policy, as ``hwsim replay`` does.

    Args:
        trace: open, or its file.
        hw: name or file of a profile, or a profile.
        policy: one, or a list of several.
        density: MLP density, or a file of one for each layer; for those policies that have one.
        eviction: who leaves a full cache.
        threads: that decide masks and count hits; None: all cores.
        options: those of ``hwsim replay`` with ``_`` for ``-``: `dram`, `overlap`, `per_token` and so on; all others
            are parameters of the policies, as with ``--set``.

    Returns:
        A result; of a list of policies a list of results.

    Raises:
        HwsimError: something is missing, unknown or impossible; the text is that of the command line.
    """
    settings, parameters = _split(options)
    made = _policies(policy, density, parameters)
    rule_name, rule = _rule(eviction)
    profile, chosen = _profile(hw), make_settings(**settings)
    opened = trace if isinstance(trace, Trace) else load(trace)
    try:
        found = Results(
            run(opened, profile, each, rule, chosen, policy_name=name, eviction_name=rule_name, threads=threads)
            for name, each in made
        )
    finally:
        if opened is not trace:
            opened.close()
    return found if _several(policy) else found[0]


@overload
def closed_loop(
    model: str | Path, hw: str | Path | Profile, policy: PolicyLike, *, text: str | Path = ..., tokens: int = ...,
    context: int = ..., prompt: int = ..., density: float | str | Path | None = ...,
    eviction: str | Path | type[Eviction] | Eviction = ..., device: str = ..., dtype: str = ..., **options: Any,
) -> Evaluation: ...  # fmt: skip


@overload
def closed_loop(
    model: str | Path, hw: str | Path | Profile, policy: Sequence[PolicyLike], *, text: str | Path = ...,
    tokens: int = ..., context: int = ..., prompt: int = ..., density: float | str | Path | None = ...,
    eviction: str | Path | type[Eviction] | Eviction = ..., device: str = ..., dtype: str = ..., **options: Any,
) -> Results[Evaluation]: ...  # fmt: skip


def closed_loop(
    model: str | Path,
    hw: str | Path | Profile,
    policy: PolicyLike | Sequence[PolicyLike],
    *,
    text: str | Path = "persuasion",
    tokens: int = 2048,
    context: int = 512,
    prompt: int = 0,
    density: float | str | Path | None = None,
    eviction: str | Path | type[Eviction] | Eviction = "lfu",
    device: str = "cpu",
    dtype: str = "auto",
    **options: Any,
) -> Evaluation | Results[Evaluation]:
    """Run a model under a policy with the cache in the loop, as ``hwsim eval`` does; several share a dense pass.

    Args:
        model: a short name, hub id, folder or GGUF file.
        hw: as for `replay`; so are `policy`, `density`, `eviction` and `options`.
        policy: one, or a list of several.
        text: a file, or the name of a bundled text.
        tokens: of the text.
        context: tokens of a window.
        prompt: first tokens of each window that are no part of the decode.
        density: MLP density.
        eviction: who leaves a full cache.
        device: of torch.
        dtype: of torch, or auto.
        options: as for `replay`.

    Raises:
        HwsimError: as `replay`; torch and transformers are missing, or the model cannot be had.
    """
    from hwsim.closed_loop import Candidate
    from hwsim.closed_loop import evaluate as loop
    from hwsim.record import Settings as Reading

    settings, parameters = _split(options)
    made = [Candidate(name, each) for name, each in _policies(policy, density, parameters)]
    rule_name, rule = _rule(eviction)
    reading = Reading(tokens=tokens, context=context, prompt=prompt, device=device, dtype=dtype)
    found = Results(
        loop(
            str(model), str(text), _profile(hw), made, rule, reading, make_settings(**settings), eviction_name=rule_name
        )
    )
    return found if _several(policy) else found[0]


def _several(policy: object) -> bool:
    return isinstance(policy, Iterable) and not isinstance(policy, str | Path | Policy | type)


def _split(options: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings, and the policies' parameters."""
    names = make_settings.__kwdefaults__ or {}
    return {k: v for k, v in options.items() if k in names}, {k: v for k, v in options.items() if k not in names}


def _policies(
    policy: PolicyLike | Sequence[PolicyLike], density: float | str | Path | None, parameters: dict[str, Any]
) -> list[tuple[str, Policy]]:
    asked: list[Any] = list(policy) if _several(policy) else [policy]  # type: ignore[arg-type]
    if not asked:
        raise SettingError("policy names no policy")
    found: list[tuple[str, type[Policy], Policy | None]] = []
    for each in asked:
        if isinstance(each, Policy):
            found.append((type(each).__name__, type(each), each))
        elif isinstance(each, type) and issubclass(each, Policy):
            found.append((each.__name__, each, None))
        else:
            found.append((*POLICIES.find(str(each)), None))
    fields = {field for _, kind, made in found if made is None for field in kind.model_fields}
    for key in parameters:
        if key not in fields:
            known = {*fields, *(make_settings.__kwdefaults__ or {})}
            raise SettingError(
                f"{key}: is no option, and no policy here has such a parameter{did_you_mean(key, known)}"
            )
    made_ones = []
    several = len(found) > 1
    for name, kind, made in found:
        own = {key: value for key, value in parameters.items() if key in kind.model_fields}
        takes = takes_density(kind)
        made_ones.append((name, made or make_policy(name, kind, own, density if takes or not several else None)))
    return made_ones


def _rule(eviction: str | Path | type[Eviction] | Eviction) -> tuple[str, Eviction]:
    if isinstance(eviction, Eviction):
        return type(eviction).__name__, eviction
    if isinstance(eviction, type) and issubclass(eviction, Eviction):
        return eviction.__name__, build(eviction, f"eviction {eviction.__name__}", {})
    return EVICTIONS.make(str(eviction))


def _profile(hw: str | Path | Profile) -> Profile:
    return hw if isinstance(hw, Profile) else load_profile(hw)
