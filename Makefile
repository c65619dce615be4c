# The three things people do here. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV = .venv

.PHONY: demo test test-fast lint

demo: $(VENV)/installed
	bash demo/demo.sh

test: lint
	$(VENV)/bin/python -m pytest

test-fast: $(VENV)/installed
	$(VENV)/bin/python -m pytest -m "not slow"

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@
