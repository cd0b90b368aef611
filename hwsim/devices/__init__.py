"""Flash, DRAM and compute: what serves requests in SimPy, and how long a request takes."""

from hwsim.devices.compute import Arithmetic, compute_seconds
from hwsim.devices.flash import FlashTimes, break_even, flash_seconds, read_sizes, stream_seconds
from hwsim.devices.server import Device

__all__ = [
    "Arithmetic",
    "Device",
    "FlashTimes",
    "break_even",
    "compute_seconds",
    "flash_seconds",
    "read_sizes",
    "stream_seconds",
]
