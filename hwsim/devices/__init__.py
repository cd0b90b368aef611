"""Flash, DRAM and compute: what serves requests in SimPy, and how long a request takes."""

from hwsim.devices.compute import Arithmetic, compute_seconds
from hwsim.devices.flash import FlashTimes, flash_seconds, holes, read_sizes, stream_seconds
from hwsim.devices.server import Device

__all__ = [
    "Arithmetic",
    "Device",
    "FlashTimes",
    "compute_seconds",
    "flash_seconds",
    "holes",
    "read_sizes",
    "stream_seconds",
]
