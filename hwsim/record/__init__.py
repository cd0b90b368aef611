"""Recording: a PyTorch model and a text -> a trace. Imports torch and transformers only when it is used."""

from hwsim.record.prepare import Settings
from hwsim.record.recording import Recorded, record
from hwsim.record.text import BUNDLED

__all__ = ["BUNDLED", "Recorded", "Settings", "record"]
