# Needs: python3 >= 3.11 with venv and its headers, g++, make (Debian: python3-venv python3-dev g++
# make). With nvcc in PATH or CUDA_HOME the CUDA kernels are built too (EFFNET_FAST_CUDA=0: not).

PYTHON ?= python3
VENV ?= .venv

PIP = $(VENV)/bin/python -m pip --quiet --disable-pip-version-check
LOCKED = $(VENV)/.locked
INSTALLED = $(VENV)/.installed
NATIVE = $(shell find csrc -type f)

.PHONY: venv demo test bench lint clean

venv: $(INSTALLED)

# torch and triton first, and all at the lock's versions: an open range would pull another torch.
$(LOCKED): requirements.lock
	@echo "venv: creating $(VENV) with $(PYTHON)"
	@$(PYTHON) -m venv $(VENV)
	@echo "venv: installing torch and triton"
	@$(PIP) install --constraint requirements.lock torch triton
	@echo "venv: installing the rest of requirements.lock"
	@$(PIP) install --no-deps --requirement requirements.lock
	@touch $@

$(INSTALLED): $(LOCKED) pyproject.toml setup.py $(NATIVE)
	@echo "venv: building and installing effnet_fast"
	@$(PIP) install --no-deps --editable .
	@$(VENV)/bin/python -c "from effnet_fast import _C; print('venv: native module:', \
	  f'CUDA for sm {_C.cuda_archs()}' if _C.cuda_built() else 'CPU only, nvcc not found or off')"
	@touch $@

demo: venv
	@$(VENV)/bin/python examples/demo.py

test: venv
	@$(VENV)/bin/python tests/run_tiers.py

bench: venv
	@$(VENV)/bin/python -m pytest bench/ --benchmark-only

lint: venv
	@$(VENV)/bin/python -m ruff check .
	@$(VENV)/bin/python -m ruff format --check .
	@$(VENV)/bin/python -m mypy effnet_fast bench kernels

# The environment goes too, if it is one: VENV may name anything.
clean:
	rm -rf build dist effnet_fast.egg-info effnet_fast/*.so
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +
	@if [ -f "$(VENV)/pyvenv.cfg" ]; then rm -rf "$(VENV)"; fi
