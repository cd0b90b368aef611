"""Compile functions with numba, and keep the code on disk. Imported only when needed."""

from __future__ import annotations

from typing import Any

import numba


def compiled(function: Any) -> Any:
    """Compile a function that creates no arrays, at its first call.

    numba considers cached code valid as long as the function's own file is unchanged, so a compiled function must call
    no compiled function of another file.
    """
    options: Any = {"nogil": True, "error_model": "numpy", "_nrt": False}
    try:
        return numba.njit(cache=True, **options)(function)
    except RuntimeError:  # no folder for the cached code
        return numba.njit(**options)(function)
