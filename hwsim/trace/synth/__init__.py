"""Synthetic traces: signals of a named model's shape with the statistics of a recorded trace, without any weights.

`law` says what the signals are drawn from, `fit` finds its parameters in a recorded trace, `generate` writes the file.
"""

from hwsim.trace.synth.fit import SignalFit, bundled
from hwsim.trace.synth.generate import Windows, synthesize

__all__ = ["SignalFit", "Windows", "bundled", "synthesize"]
