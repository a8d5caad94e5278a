# One verb a line. Everything is installed into $(VENV); nothing outside this folder is touched.

PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
# Threads that spin while they wait make a small network up to ten times slower where other programs use the same cores,
# and threads that sleep wake too late for it: the demo trains on one thread (3,600 images/s on a quiet machine, 3,400
# beside a busy program; two sleeping threads 2,450 and 1,750, two spinning ones 5,300 and 300), tests on one a worker.
# Another torch: make demo TORCH='torch==2.12.0' TORCH_INDEX=https://download.pytorch.org/whl/cu130
TORCH ?= torch==2.13.0
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
ARGS ?=
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check -q
# What pip says goes to a file, which is shown where pip fails: its warnings about package indices are no concern of a
# user for whom everything works.
QUIETLY = >$(VENV)/install.log 2>&1 || { cat $(VENV)/install.log >&2; exit 1; }
CPP := $(wildcard setup.py csrc/*.cpp csrc/*.h csrc/*/*.cpp csrc/*/*.h)

.PHONY: help demo test bench gpu kernels lint sanitize wheel clean
help:  ## list the verbs
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

demo: $(VENV)/.installed  ## train a real network to 98 % zeros, run it sparse, write runs/demo/report.html
	@OMP_WAIT_POLICY=passive $(BIN)/sparse-ops train recipes/demo.toml --run runs/demo --threads 1 $(ARGS)

test: $(VENV)/.dev  ## every test, without a GPU (Triton kernels run in the interpreter)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

bench: $(VENV)/.installed  ## list the benchmarks; run one with ARGS='step --json FILE'
	@$(BIN)/python -m bench $(ARGS)

gpu:  ## all that needs a GPU, in under 9 minutes, by a PYTHON that has torch; nothing is installed or built
	@PYTHONPATH=. $(PYTHON) -m bench gpu $(ARGS)

kernels: $(VENV)/.dev  ## registers, spills and shared memory of every Triton kernel, compiled without a GPU
	$(BIN)/python -m bench kernels $(ARGS)

lint: $(VENV)/.dev  ## ruff and mypy
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

sanitize: $(VENV)/.dev  ## the op tests under AddressSanitizer and UndefinedBehaviourSanitizer (long; ARGS names tests)
	@PYTHON=$(BIN)/python sh tools/sanitize.sh $(ARGS)

wheel: $(VENV)/.dev  ## an abi3 manylinux wheel in wheelhouse/, tried in a bare environment without a compiler
	PYTHON=$(BIN)/python TORCH='$(TORCH)' TORCH_INDEX='$(TORCH_INDEX)' sh tools/wheel.sh

clean:  ## remove what was built here, not the runs
	rm -rf build dist wheelhouse $(VENV) sparse_ops/_C.abi3.so *.egg-info

# torch comes alone and first: its CPU build has an index of its own, and everything else must not be looked up there.
# Its stamp carries its name, so that another TORCH is installed where one is there already.
TORCH_STAMP := $(VENV)/.$(subst =,-,$(subst /,_,$(subst $() ,_,$(TORCH))))

$(TORCH_STAMP):
	@test -n "$(PYTHON)" || { echo "sparse_ops needs Python 3.11 or newer; none was found. Set PYTHON=/path/to/python3.11"; exit 1; }
	@echo "sparse_ops: making $(VENV) and installing $(TORCH) and pinned packages (a minute or two)"
	@$(PYTHON) -m venv $(VENV)
	@rm -f $(VENV)/.torch-*
	@$(PIP) install --no-deps --retries 1 --extra-index-url $(TORCH_INDEX) '$(TORCH)' $(QUIETLY)
	@touch $@

$(VENV)/.requirements: requirements.txt $(TORCH_STAMP)
	@$(PIP) install '$(TORCH)' -r requirements.txt $(QUIETLY)
	@touch $@

$(VENV)/.installed: $(VENV)/.requirements pyproject.toml $(CPP)
	@echo "sparse_ops: building the C++ kernels"
	@$(PIP) install --no-build-isolation --no-deps -e . $(QUIETLY)
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.installed
	@$(PIP) install '$(TORCH)' -r requirements-dev.txt $(QUIETLY)
	@touch $@
