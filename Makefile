.PHONY: check format test

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
