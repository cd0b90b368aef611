.PHONY: check format quick test

# everything that CI checks, in the environment that is active
check:
	ruff check .
	ruff format --check .
	mypy
	lint-imports
	python -m pytest -n logical

format:
	ruff check --fix .
	ruff format .

test:
	python -m pytest -n logical

# the core's tests: no torch, no processes, no pages; within 90 s on two cores
quick:
	python -m pytest -q -n logical tests/test_api.py tests/analysis tests/cache tests/device tests/evictions tests/memory \
		tests/model tests/policies tests/simulation tests/testing tests/timing tests/util \
		tests/system/test_golden.py tests/system/test_rules.py
