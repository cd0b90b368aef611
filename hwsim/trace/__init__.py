"""The trace file, version 1: the recorded signals of a model over some text, token by token.

`header` says what is in the file, `reader` reads it block by block, `writer` writes it in place and resumes.
"""

from hwsim.trace.header import Sequence, TraceHeader
from hwsim.trace.reader import Trace
from hwsim.trace.writer import TraceWriter

__all__ = ["Sequence", "Trace", "TraceHeader", "TraceWriter"]
