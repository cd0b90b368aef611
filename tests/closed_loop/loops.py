"""Short ways to closed loops, with what most tests leave out filled in."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the closed loop needs the extra `record`")

from hwsim.closed_loop import Candidate, Generated
from hwsim.closed_loop import generate as write
from hwsim.closed_loop.generation import Writing
from hwsim.evictions import Eviction
from hwsim.masking.streams import Masking
from hwsim.model.shape import ModelShape
from hwsim.policy import Policy
from hwsim.record import Settings as Reading
from hwsim.record.extras import libraries
from hwsim.record.loading import read_structure
from hwsim.record.sources import find_source
from hwsim.simulation.plugins import EVICTIONS, POLICIES
from hwsim.simulation.run import Conditions, Source, recorded
from hwsim.simulation.settings import Settings
from hwsim.trace import Sequence
from tests.conftest import flat_profile


def candidate(name: str, **parameters: object) -> Candidate:
    """A built-in policy."""
    return Candidate(name, POLICIES.make(name, parameters)[1])


def rule(name: str = "lfu") -> Eviction:
    """A built-in eviction."""
    return EVICTIONS.make(name)[1]


def shape_of(folder: Path) -> ModelShape:
    """The shape of a model on disk."""
    return read_structure(find_source(str(folder)), libraries()).shape


def masking_of(
    policy: Policy, model: ModelShape, longest: int, settings: Settings, eviction: str = "lfu", name: str = ""
) -> Masking:
    """A policy and its caches, on a model that reads at most so many tokens."""
    source = Source(recorded(model, [Sequence(tokens=longest)]), {})
    return Conditions(flat_profile(), rule(eviction), settings).run(source, policy, name).masking


def generate(
    model: Path,
    prompt: str,
    candidate: Candidate,
    tokens: int,
    settings: Settings | None = None,
    eviction: str = "lfu",
    *,
    temperature: float = 0.0,
    reading: Reading | None = None,
    on_text: Callable[[str], None] | None = None,
) -> Generated:
    """A generation on a flat device."""
    conditions = Conditions(flat_profile(), rule(eviction), settings or Settings(), eviction)
    writing = Writing(tokens, temperature=temperature)
    return write(str(model), prompt, conditions, candidate, writing, reading, on_text=on_text)
