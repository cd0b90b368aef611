"""Each parameter of a plug-in keeps its own bounds by default: pydantic does not check defaults."""

from __future__ import annotations

from typing import Annotated

import pytest
from pydantic import TypeAdapter

from hwsim.simulation.plugins import EVICTIONS, POLICIES, PREFETCHES

PLUGINS = [(kind, name) for kind in (POLICIES, EVICTIONS, PREFETCHES) for name in kind.names()]


@pytest.mark.parametrize(("kind", "name"), PLUGINS, ids=[name for _, name in PLUGINS])
def test_defaults_keep_their_bounds(kind, name):
    for field in kind.find(name)[1].model_fields.values():
        if not field.is_required():
            rule = TypeAdapter(Annotated[(field.annotation, *field.metadata)] if field.metadata else field.annotation)
            rule.validate_python(field.get_default(call_default_factory=True))
