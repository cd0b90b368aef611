"""The closed loop: a running model under a policy, with the cache in the loop. Needs the extra `record`."""

from hwsim.evaluate.evaluation import Candidate, Loops, evaluate
from hwsim.evaluate.generation import Generated, generate
from hwsim.evaluate.tasks import TaskSettings, evaluate_tasks

__all__ = ["Candidate", "Generated", "Loops", "TaskSettings", "evaluate", "evaluate_tasks", "generate"]
