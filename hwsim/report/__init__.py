"""Turning results into what people read."""
