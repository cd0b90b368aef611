"""Contract checks for authors: ``check_policy(Mine)`` or ``check_eviction(Mine)`` in a test of your own.

Either runs on made-up signals in about a second, without a trace and without weights. `decide` gives the masks of a
policy for signals of yours, for a test of what it does. ``hwsim check`` runs the same rules and prints the verdict.
"""

from hwsim.testing.drive import SMALL_MODEL, RandomSignals, decide
from hwsim.testing.evictions import check_eviction
from hwsim.testing.policies import check_policy
from hwsim.testing.rules import BrokenRuleError
from hwsim.testing.speed import Speed, eviction_speed, policy_speed

__all__ = [
    "SMALL_MODEL",
    "BrokenRuleError",
    "RandomSignals",
    "Speed",
    "check_eviction",
    "check_policy",
    "decide",
    "eviction_speed",
    "policy_speed",
]
