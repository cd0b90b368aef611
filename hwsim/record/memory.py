"""Free memory for weights, within the limits of the machine, its container and the process."""

from __future__ import annotations

from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
_RESERVE = 0.85  # of what is free: the rest is for activations and the libraries themselves


def available_bytes() -> int:
    """Bytes that this process may still allocate, less a reserve."""
    import psutil

    limits = [psutil.virtual_memory().available, *_cgroup(), *_process()]
    return int(_RESERVE * max(0, min(limits)))


def _cgroup() -> list[int]:
    """Bytes that the limit of the container leaves; empty without a limit."""
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = (_CGROUP / "memory.current").read_text().strip()
        return [] if limit == "max" else [int(limit) - int(used)]
    except (OSError, ValueError):
        return []


def _process() -> list[int]:
    """Bytes that ulimit leaves, of private data and of address space; empty without limits."""
    try:
        import resource

        import psutil
    except ImportError:  # not a Unix
        return []
    memory = psutil.Process().memory_info()
    kinds = ((resource.RLIMIT_DATA, getattr(memory, "data", memory.rss)), (resource.RLIMIT_AS, memory.vms))
    limits = [(resource.getrlimit(kind)[0], used) for kind, used in kinds]
    return [limit - used for limit, used in limits if limit != resource.RLIM_INFINITY]
