"""Masks through caches: the policy decides, the cache serves, units are counted. No time in it."""
