"""Router traces of other programs, imported: which experts each token used, in each layer.

One file for each format: `bigmoe` and `general`. `lines` reads a file block by block, `cells` and `objects` turn lines
into arrays, `preamble` reads the sizes of the model, `order` finds out which token a row belongs to, and `run` puts
everything together.
"""

from hwsim.trace.importing.run import FORMATS, Imported, import_trace

__all__ = ["FORMATS", "Imported", "import_trace"]
