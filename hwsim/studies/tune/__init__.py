"""Tuning: find the fastest settings of a policy whose perplexity in the closed loop stays within a loss."""

from hwsim.studies.tune.study import Goal, Tuned, tune, write_settings

__all__ = ["Goal", "Tuned", "tune", "write_settings"]
