"""Frozen inputs and expected results of the system tests; ``python -m tests.system.golden.make`` writes the results."""
