"""hwsim: a discrete-event simulator of LLM token generation on devices whose weights do not fit into DRAM."""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

__version__ = "0.4.0"
__all__ = ["Results", "__version__", "closed_loop", "import_trace", "load", "replay"]

if TYPE_CHECKING:
    from hwsim.api import Results, closed_loop, import_trace, load, replay


class _Package(ModuleType):
    """Keeps its interface: the function `closed_loop` stays when the package of that name is imported."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name: str) -> Any:
    """The interface is loaded when it is first used: the command line must begin at once."""
    if name in __all__:
        from hwsim import api  # noqa: PLC0415

        return getattr(api, name)
    raise AttributeError(f"module 'hwsim' has no attribute {name!r}")
