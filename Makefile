# make demo [RECIPE=name] [SEED=n]   the four notebooks on this machine's CPU, into artifacts/
# make test [FAST=1]                 all tests, or only the quick ones
# The first call makes .venv and installs what is pinned; PYTHON=/path/to/python picks the interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test faults lint notebooks preflight bench assets clean

VENV := .venv
PY := $(VENV)/bin/python
INSTALL_ONLY := $(PY) -m pip --disable-pip-version-check install $(if $(CI),--quiet)
INSTALL := $(INSTALL_ONLY) -r requirements.txt
CHECK := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
PARITY_STAMP := $(VENV)/.installed-parity
PARAMETERS := --set PROFILE=cpu $(if $(RECIPE),--set 'RECIPE=$(RECIPE)') $(if $(SEED),--set 'SEED=$(SEED)')
NAMES := $(or $(PYTHON),python3.12 python3.11 python3.13 python3)

help:
	@sed -n '1,3s/^# //p' Makefile; echo "also: make faults lint notebooks preflight bench assets clean"

# A name on the PATH may be a shim that fails, or another version: the first that runs and fits is taken.
$(PY):
	@python=""; \
	for name in $(NAMES); do \
	  for path in $$(type -aP "$$name" || true); do \
	    if "$$path" -c '$(CHECK)' >/dev/null 2>&1; then python="$$path"; break 2; fi; \
	  done; \
	done; \
	if [ -z "$$python" ]; then \
	  echo "error: reasonkit needs Python 3.11, 3.12 or 3.13 with the venv module; tried: $(NAMES)." >&2; \
	  echo "Install one, or name it: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
	  exit 1; \
	fi; \
	echo "making $(VENV) with $$python ($$("$$python" -V))"; \
	"$$python" -m venv --clear $(VENV)

$(RUN_STAMP): requirements.txt pyproject.toml | $(PY)
	@echo "installing the pinned requirements (some minutes the first time)"
	$(INSTALL) -e .
	@touch $@

$(DEV_STAMP): $(RUN_STAMP)
	$(INSTALL) -e ".[dev]"
	@touch $@

# PyTorch, for tests/test_parity.py alone: neither `dev` nor FAST=1 need it.
$(PARITY_STAMP): $(DEV_STAMP)
	$(INSTALL) -e ".[parity]"
	@touch $@

demo: $(RUN_STAMP)
	$(PY) notebooks/build.py run $(PARAMETERS)
	@echo "report: $(CURDIR)/artifacts/report.html"

test: $(if $(FAST),$(DEV_STAMP),$(PARITY_STAMP))
	$(PY) -m pytest $(if $(FAST),-m "not slow" --ignore tests/test_parity.py)

# The tests that put faults into a run, at all places; `make test` takes two of the kills.
faults: $(DEV_STAMP)
	FAULTS=all $(PY) -m pytest tests/test_faults.py

lint: $(DEV_STAMP)
	$(PY) -m ruff check .

notebooks: $(RUN_STAMP)
	$(PY) notebooks/build.py build

# libtpu compiles for the named TPU topology without one. In a folder of its own, as JAX would look for TPUs beside it.
$(VENV)/libtpu: $(RUN_STAMP)
	$(INSTALL_ONLY) --no-deps --target $@ libtpu==0.0.42.1

preflight: $(VENV)/libtpu
	PYTHONPATH=$(VENV)/libtpu $(PY) -m reasonkit.forecast $(if $(RECIPE),--recipe '$(RECIPE)') $(if $(MODEL),--model '$(MODEL)') \
	  $(if $(TOPOLOGY),--topology '$(TOPOLOGY)')

bench: $(DEV_STAMP)
	for script in benchmarks/*.py; do echo "== $$script"; $(PY) "$$script" || exit 1; done

assets: $(RUN_STAMP)
	$(PY) -m reasonkit.assets.build

clean:
	rm -rf artifacts build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
