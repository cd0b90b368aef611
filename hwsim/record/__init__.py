"""Recording: run a PyTorch model over a text and write a trace. Imports torch and transformers only when used."""

from hwsim.record.prepare import Settings
from hwsim.record.recording import Recorded, record
from hwsim.record.text import BUNDLED

__all__ = ["BUNDLED", "Recorded", "Settings", "record"]
