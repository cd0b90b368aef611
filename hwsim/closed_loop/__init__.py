"""The closed loop: a running model under a policy, with the cache in the loop. Needs the extra `record`."""

from hwsim.closed_loop.evaluation import Candidate, Loops, evaluate
from hwsim.closed_loop.generation import Generated, Writing, generate
from hwsim.closed_loop.tasks import TaskSettings, evaluate_tasks

__all__ = ["Candidate", "Generated", "Loops", "TaskSettings", "Writing", "evaluate", "evaluate_tasks", "generate"]
