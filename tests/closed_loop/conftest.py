"""The checkpoints of the recording's tests serve here, too."""

from tests.record.conftest import checkpoints, smollm2

__all__ = ["checkpoints", "smollm2"]
