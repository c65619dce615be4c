# What people do here. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV = .venv
# A test process for each core, up to 4, which grow to 3 GB where there are two; one that is idle takes over tests.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: demo test test-slow test-all lint tpu-compiler gpu-compiler

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

# The compilers of TPUs and GPUs that are not there, for `shatter_tf.benchmark --target=tpu:…` and gpu:…. They have
# environments of their own: nothing else needs them, and what they need would disagree with TensorFlow's.
tpu-compiler: .venv-tpu/installed
gpu-compiler: .venv-gpu/installed

.venv-tpu/installed: COMPILER = "jax[tpu]==0.10.2"
.venv-gpu/installed: COMPILER = "jax==0.10.2" "jax-cuda12-plugin==0.10.2" "nvidia-cuda-nvcc-cu12==12.9.86"

.venv-tpu/installed .venv-gpu/installed:
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(@D)/bin/python -m pip install --quiet $(COMPILER)
	touch $@
