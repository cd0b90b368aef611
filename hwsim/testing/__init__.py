"""Contract checks for authors: ``check_policy(Mine)`` or ``check_eviction(Mine)`` in a test of your own.

Each runs on synthetic signals in about a second, without a trace and without weights. `decide` returns the masks of a
policy for your own signals, to test what it does. ``hwsim plugin check`` runs the same rules and prints the verdict.
"""

from hwsim.testing.drive import SMALL_MODEL, SMALL_SPARSE_MODEL, RandomSignals, decide
from hwsim.testing.evictions import check_eviction
from hwsim.testing.policies import check_policy
from hwsim.testing.rules import BrokenRuleError
from hwsim.testing.speed import Speed, eviction_speed, policy_speed

__all__ = [
    "SMALL_MODEL",
    "SMALL_SPARSE_MODEL",
    "BrokenRuleError",
    "RandomSignals",
    "Speed",
    "check_eviction",
    "check_policy",
    "decide",
    "eviction_speed",
    "policy_speed",
]
