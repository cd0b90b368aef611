"""The interface for Python and notebooks: functions with the names, defaults and errors of the commands.

>>> import hwsim
>>> trace = hwsim.load("sample")
>>> result = hwsim.replay(trace, hw="pixel8", policy="dip-ca", density=0.5, dram="50%")
"""

from hwsim.api.functions import closed_loop, replay
from hwsim.api.interface import PolicyLike, Results, load
from hwsim.trace.importing import Imported, import_trace

__all__ = ["Imported", "PolicyLike", "Results", "closed_loop", "import_trace", "load", "replay"]
