"""``hwsim --version``: the version of the program; with ``--json`` of everything that results may depend on."""

from __future__ import annotations

from typing import Any

import hwsim

_PACKAGES = (
    "numpy", "simpy", "pydantic", "pyyaml", "rich", "typer", "pebble", "filelock", "numba", "torch", "transformers",
    "gguf", "safetensors", "peft", "lm-eval", "pandas", "plotly", "scipy", "optuna", "dask", "ray",
)  # fmt: skip


def versions() -> dict[str, Any]:
    """Versions of hwsim, Python, the machine and the packages (None if missing), for reports of differences."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def of(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    return {
        "hwsim": hwsim.__version__,
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "system": platform.system(),
        "machine": platform.machine(),
        "packages": {package: of(package) for package in _PACKAGES},
    }
