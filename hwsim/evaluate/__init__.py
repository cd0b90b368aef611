"""The closed loop: a running model under a policy, with the cache in the loop. Needs the extra `record`."""

from hwsim.evaluate.evaluation import Candidate, evaluate
from hwsim.evaluate.generation import Generated, generate

__all__ = ["Candidate", "Generated", "evaluate", "generate"]
