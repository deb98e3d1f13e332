# Everything a fresh machine needs: Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin
# Threads that spin while they wait ruin a shared machine.
PYTEST := OMP_WAIT_POLICY=passive $(BIN)/python -m pytest

.PHONY: help demo test fast docs site lint types format clean

help:  ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/ready  ## simulate a protein that moves, and find its map and motion
	$(BIN)/instamap demo -o demo-out --force

test: .venv/dev lint  ## all that continuous integration runs: lint and every test
	$(PYTEST) -n 2 --dist loadfile --durations=15

fast: .venv/dev  ## the tests that take seconds
	$(PYTEST) -n 2 --dist loadfile -m "not slow"

docs: .venv/dev  ## run what the pages show, and look for the files, tests and words that they name
	$(PYTEST) tests/test_docs.py tests/test_conventions.py tests/test_glossary.py

site: .venv/dev  ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet --strict
	@echo "open build/site/index.html"

lint: .venv/dev types  ## style, format, spelling and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell

types: .venv/dev  ## mypy alone
	$(BIN)/mypy

format: .venv/dev  ## mend what can be mended without thinking
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# torch 2.13.0 has CPU wheels under its plain name; other releases bring gigabytes of CUDA.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/dev: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:  ## remove the environment and what demo made
	rm -rf .venv demo-out build *.egg-info .mypy_cache .ruff_cache
