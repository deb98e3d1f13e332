# Everything a fresh machine needs: Python >= 3.11 and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test fast lint clean

demo: .venv/ready  ## simulate a small molecule and reconstruct it
	$(BIN)/instamap demo -o demo-out --force

test: .venv/dev lint  ## all that continuous integration runs
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest --durations=15

fast: .venv/dev  ## the tests that take seconds
	OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -m "not slow"

lint: .venv/dev
	$(BIN)/ruff check .

# torch 2.13.0 has CPU wheels under its plain name; other releases bring gigabytes of CUDA.
.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet torch==2.13.0
	$(BIN)/python -m pip install --quiet --editable '.[cpu]'
	touch $@

.venv/dev: .venv/ready
	$(BIN)/python -m pip install --quiet --editable '.[cpu,dev]'
	touch $@

clean:
	rm -rf .venv demo-out build *.egg-info
