"""Contract checks for authors: ``check_policy(Mine)`` or ``check_eviction(Mine)`` in a test of your own.

Either tells whether a plug-in keeps every rule of its contract, on made-up data, in well under a second.
"""

from hwsim.testing.evictions import check_eviction
from hwsim.testing.policies import SMALL_MODEL, RandomSignals, check_policy

__all__ = ["SMALL_MODEL", "RandomSignals", "check_eviction", "check_policy"]
