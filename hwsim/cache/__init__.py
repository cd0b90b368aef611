"""DRAM caches of units, one for each group of each layer or shared, and the compiled scan of many tokens."""

from hwsim.cache.cache import Cache, CacheSetup

__all__ = ["Cache", "CacheSetup"]
