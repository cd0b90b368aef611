"""The libraries of the extra `record`, imported when they are used; their errors become one line."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from pydantic import ValidationError

from hwsim.errors import HwsimError, ModelError, one_line
from hwsim.util.explain import problem

_NEEDED = ("torch", "transformers", "accelerate", "safetensors", "gguf", "huggingface_hub")
_LONGEST = 240  # characters of another library's message; some print a whole screen


class Libraries(NamedTuple):
    """The modules that recording uses."""

    torch: Any
    transformers: Any


def require_extra(what: str = "recording") -> None:
    """Check, without importing anything, that the extra is installed.

    Args:
        what: the activity that needs it, for the message.

    Raises:
        ModelError: it is not.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ModelError(
            f"{what} needs libraries that are not installed, {', '.join(missing)}; "
            "install them with: pip install 'hwsim[record]'"
        )


def libraries() -> Libraries:
    """Import torch and transformers, quietly.

    Raises:
        ModelError: they cannot be imported.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # a warning about forks otherwise
    with told_as("recording cannot use its libraries"):
        import accelerate
        import torch
        import transformers
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    accelerate.logging.get_logger("accelerate").setLevel("ERROR")
    return Libraries(torch, transformers)


def import_torch(what: str) -> Any:
    """Import torch alone, which is all that training from a trace needs.

    Args:
        what: the activity that needs torch, for the message.

    Raises:
        ModelError: it is not installed, or cannot be imported.
    """
    if importlib.util.find_spec("torch") is None:
        raise ModelError(f"{what} needs torch, which is not installed; install it with: pip install 'hwsim[record]'")
    with told_as(f"{what} cannot use its libraries"):
        import torch
    return torch


@contextmanager
def no_bars() -> Iterator[None]:
    """Context manager that hides the tqdm bars of other libraries; some of them have no switch."""
    from tqdm.std import tqdm

    original = tqdm.__init__

    def silent(self: Any, *args: Any, **options: Any) -> None:
        original(self, *args, **(options | {"disable": True}))

    tqdm.__init__ = silent
    try:
        yield
    finally:
        tqdm.__init__ = original


@contextmanager
def told_as(what: str) -> Iterator[None]:
    """Context manager that turns any error of another library into a ModelError of one line, beginning with `what`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (HwsimError, KeyboardInterrupt):
        raise
    except MemoryError as error:
        raise ModelError(f"{what}: out of memory; give less with --context or --max-memory") from error
    except ValidationError as error:  # raised by hwsim's own rules, which name the value
        raise ModelError(f"{what}: {problem(error).text}") from error
    except Exception as error:
        text = one_line(error)
        text = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
        raise ModelError(f"{what}: {type(error).__name__}: {text}") from error
