"""The trace file, version 1: the recorded signals of a model over some text, token by token.

`header` describes the content of the file, `encoding` how its rows are stored. `reader` reads it block by block,
`writer` writes it in place and resumes, `convert` stores it in another encoding.
"""

from hwsim.trace.convert import convert
from hwsim.trace.encoding import FLOAT16, Encoding
from hwsim.trace.header import Sequence, TraceHeader
from hwsim.trace.reader import Trace
from hwsim.trace.sequences import Sequences
from hwsim.trace.writer import TraceWriter

__all__ = ["FLOAT16", "Encoding", "Sequence", "Sequences", "Trace", "TraceHeader", "TraceWriter", "convert"]
