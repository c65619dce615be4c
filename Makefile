# What people do here. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV = .venv
# A test process for each core, up to 4, which grow to 3 GB where there are two; one that is idle takes over tests.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: demo test test-slow test-all lint tpu-compiler

demo: $(VENV)/installed
	bash demo/demo.sh

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed
	$(PYTEST) -m slow

# In one run, which sets up once what both need.
test-all: lint
	$(PYTEST)

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

# The compiler of real TPUs, for `shatter_tf.benchmark --target=tpu:…`. It has an environment of its own: nothing else
# needs it, and what it needs would disagree with TensorFlow's.
tpu-compiler: .venv-tpu/installed

.venv-tpu/installed:
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install --quiet --upgrade "pip>=24"
	.venv-tpu/bin/python -m pip install --quiet "jax[tpu]==0.10.2"
	touch $@
