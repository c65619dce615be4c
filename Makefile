# What people do here. Each makes the virtual environment it needs.
PYTHON ?= python3
VENV = .venv
# A test process for each core, up to 4; one that is idle takes over tests.
PYTEST = $(VENV)/bin/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal

.PHONY: demo demo-distil test test-slow test-all test-wheel lint tpu-compiler gpu-compiler

demo: $(VENV)/installed
	bash demo/demo.sh

# The same from a BERT, which teaches a Shatter.
demo-distil: $(VENV)/installed
	bash demo/distil.sh

test: lint
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/installed
	$(PYTEST) -m slow

# In two runs: TensorFlow keeps what it compiled, so that test processes grow to 10 GB in one.
test-all: lint
	$(PYTEST) -m "not slow"
	$(PYTEST) -m slow

# The package as pip installs it, without this directory, in an environment with only what it needs.
test-wheel: .venv-wheel/installed
	rm -rf build .venv-wheel/dist
	.venv-wheel/bin/python -m pip wheel --quiet --no-deps --wheel-dir .venv-wheel/dist .
	.venv-wheel/bin/python -m pip install --quiet --no-deps --force-reinstall .venv-wheel/dist/*.whl
	tests/wheel.sh .venv-wheel

lint: $(VENV)/installed
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable ".[test]"
	touch $@

.venv-wheel/installed: requirements-slim.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --upgrade "pip>=24"
	$(@D)/bin/python -m pip install --quiet --no-deps --requirement requirements-slim.txt
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
