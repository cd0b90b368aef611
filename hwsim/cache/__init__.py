"""DRAM caches of units: one for each group of each layer, or shared; the compiled scan through them."""

from hwsim.cache.cache import Cache, CacheSetup

__all__ = ["Cache", "CacheSetup"]
