# Every target sets itself up: a machine with Python 3.11 or newer and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
DEMO ?= demo

.PHONY: install demo test test-lowest lint wheel clean
install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: install
	rm -rf $(DEMO)
	$(BIN)/attnbooth init $(DEMO) --example
	$(BIN)/attnbooth train $(DEMO) --fast
	$(BIN)/attnbooth generate $(DEMO) "a photo of a {} on the beach" "an oil painting of a {} in the forest" -n 4 --grid
	$(BIN)/attnbooth eval $(DEMO) -n 2
	$(BIN)/attnbooth inspect-attn $(DEMO) "a photo of a {} on the beach"
	$(BIN)/attnbooth status $(DEMO)

# A test is one thread; a file's tests share fixtures, so they stay together.
test: install lint
	$(BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# The whole suite on the lowest versions that pyproject.toml allows.
test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt torch
	.venv-lowest/bin/python -m pip install --quiet --disable-pip-version-check --constraint constraints-lowest.txt \
		--editable '.[peft]' hypothesis pytest
	.venv-lowest/bin/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

wheel: install
	$(BIN)/python -m build --wheel

# Not build/: it holds the progress of trainings that take hours.
clean:
	rm -rf $(VENV) .venv-lowest $(DEMO) dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
