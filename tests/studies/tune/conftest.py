"""Checkpoints of small models, where torch is."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torch"):
    from tests.record.conftest import checkpoints

    __all__ = ["checkpoints"]
