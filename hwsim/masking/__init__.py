"""Masks and caches: the policy decides masks, the caches serve them, and units are counted, without time."""
