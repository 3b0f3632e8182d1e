# make demo [RECIPE=name] [SEED=n] [DATA=name]   the four notebooks on this machine's CPU, into artifacts/
#                                    (another run beside it: REASONKIT_ARTIFACTS=artifacts-2 make demo ...)
# make demo MODEL=gemma3-270m        the same on a small real Gemma (hours), with PROFILE=gpu on a CUDA GPU
# make submission [RECIPE=name] [DATA=name] build/submission_<recipe>.ipynb, one notebook with what these need
# make kaggle OWNER=you [RECIPE=name] [DATA=name] a folder for the Kaggle CLI: a short notebook, and the library as a data set
# make test [FAST=1]                 the tests of the library, the recipes and the tools, or only the quick ones
# make runs                          whole runs: the notebooks, what kills leave behind, several hosts
# make parity, make jupyterlab       the comparison with transformers and PEFT, and the clicks in JupyterLab (Chromium)
# The first call creates .venv and installs the pinned packages. PYTHON=/path/to/python picks the interpreter.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo submission kaggle test runs parity jupyterlab faults lint lines notebooks rendered screenshots preflight bench assets clean

VENV := .venv
PY := $(VENV)/bin/python
INSTALL_ONLY := $(PY) -m pip --disable-pip-version-check install $(if $(CI),--quiet)
INSTALL := $(INSTALL_ONLY) -r requirements.txt
CHECK := import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
RUN_STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev
# A small base model cannot judge, so with MODEL the rubric has weight 0 (g_exact) unless RECIPE says otherwise.
RECIPE ?= $(if $(MODEL),g_exact)
RENDERED := notebooks/rendered$(if $(MODEL),/$(MODEL))
ARTIFACTS := $(or $(REASONKIT_ARTIFACTS),artifacts)
PLACE := $(or $(PROFILE),cpu)
PARAMETERS := --set 'PROFILE=$(PLACE)$(if $(MODEL),-$(MODEL))' $(if $(RECIPE),--set 'RECIPE=$(RECIPE)') $(if $(SEED),--set 'SEED=$(SEED)') \
  $(if $(DATA),--set 'DATA=$(DATA)')
NAMES := $(or $(PYTHON),python3.12 python3.11 python3.13 python3)

help:
	@sed -n '1,9s/^# //p' Makefile; echo "also: make faults lint lines notebooks rendered screenshots preflight bench assets clean"

# A name on the PATH may be a broken shim or another version, so take the first that runs and fits.
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

$(addprefix $(VENV)/.installed-,dev data realmodel parity jupyterlab): $(VENV)/.installed-%: $(RUN_STAMP)
	$(INSTALL) -e ".[$*]"
	@touch $@

# The transformers release before the pinned one: both must read our exports. A venv holds one, so this has a folder.
$(VENV)/transformers4: $(RUN_STAMP)
	$(INSTALL_ONLY) --no-deps --upgrade --target $@ transformers==4.57.6 tokenizers==0.22.2 huggingface_hub==0.36.2

# llama.cpp's converter is in no wheel, only in the source of its Python bindings.
LLAMA_SOURCE := llama_cpp_python-0.3.36
$(VENV)/llama.cpp: $(RUN_STAMP)
	rm -rf $@ $@.tmp && mkdir -p $@.tmp
	$(PY) -m pip --disable-pip-version-check download --no-deps --no-binary llama-cpp-python -d $@.tmp llama-cpp-python==0.3.36
	tar -xzf $@.tmp/$(LLAMA_SOURCE).tar.gz -C $@.tmp $(addprefix $(LLAMA_SOURCE)/vendor/llama.cpp/,convert_hf_to_gguf.py conversion gguf-py)
	mv $@.tmp/$(LLAMA_SOURCE)/vendor/llama.cpp $@ && rm -r $@.tmp

# What compares with other programs needs them, and PyTorch.
PARITY := tests/test_parity.py tests/test_stranger.py tests/test_lm_eval.py
$(VENV)/.installed-parity: $(VENV)/.installed-dev $(VENV)/transformers4 $(VENV)/llama.cpp
# What opens notebooks in JupyterLab needs it, and Chromium.
BROWSER := tests/test_jupyterlab.py
$(VENV)/.installed-jupyterlab: $(VENV)/.installed-dev

# The pins keep jax at its version.
$(VENV)/.installed-cuda: $(RUN_STAMP)
	$(INSTALL) "jax[cuda13]"
	@touch $@

# MODEL first shows Gemma's terms and stops until they are accepted: make demo ... ACCEPT_GEMMA_TERMS=yes
EXTRAS := $(if $(MODEL),realmodel) $(if $(filter gym,$(RECIPE)),data) $(if $(filter gpu,$(PLACE)),cuda)
demo: $(RUN_STAMP) $(addprefix $(VENV)/.installed-,$(EXTRAS))
	$(if $(MODEL),$(PY) -m tools.gemma_from_gguf)
	$(PY) notebooks/build.py run $(PARAMETERS)
	@echo "report: $$(cd '$(ARTIFACTS)' && pwd)/report.html"

# A test file stays in one process, because its tests share models and compiled programs. WORKERS=0 runs them in this one.
WORKERS := 2
PYTEST := $(PY) -m pytest --numprocesses $(WORKERS) --dist loadfile --no-loadscope-reorder --durations 25
# What trains no model and runs no notebook.
QUICK := $(addprefix tests/,text recipes/graders recipes/judges recipes/rewards eval judge rewards data session test_house.py test_build.py)

# What starts kernels and processes that train.
RUNS := $(addprefix tests/,test_notebooks.py test_faults.py models/test_distributed.py)

test: $(DEV_STAMP)
	$(PYTEST) $(if $(FAST),-m "not slow" $(QUICK),$(addprefix --ignore ,$(RUNS) $(PARITY) $(BROWSER)))

runs: $(DEV_STAMP)
	$(PYTEST) $(RUNS)

# Where pip finds only CUDA builds, PyTorch is gigabytes. pyproject.toml says how to get the CPU build.
parity: $(VENV)/.installed-parity
	$(PY) -m pytest $(PARITY)

jupyterlab: $(VENV)/.installed-jupyterlab
	$(PY) -m pytest $(BROWSER)

# The fault tests, at all places. `make runs` has only two of the kills.
faults: $(DEV_STAMP)
	FAULTS=all $(PY) -m pytest tests/test_faults.py

lint: $(DEV_STAMP)
	$(PY) -m ruff check .

lines:
	@python3 benchmarks/lines.py

# The last run's notebooks with their outputs, and a line that says which run and which commit they are of.
OF_RUN = $(strip make demo $(foreach name,MODEL DATA RECIPE SEED,$(if $($(name)),$(name)=$($(name)))))
rendered:
	! grep -l '"output_type": "error"' '$(ARTIFACTS)'/notebooks/0[1-4]_*.ipynb
	mkdir -p $(RENDERED)
	cp '$(ARTIFACTS)'/notebooks/0[1-4]*_*.ipynb $(RENDERED)/
	echo "Outputs of \`$(OF_RUN)\`, $$(date +%F), commit $$(git rev-parse --short HEAD)." > $(RENDERED)/README.md

# Of the run in artifacts/, into docs/images. Needs Chromium.
screenshots: $(DEV_STAMP)
	$(PY) benchmarks/screenshots.py

notebooks: $(RUN_STAMP)
	$(PY) notebooks/build.py build

submission: $(RUN_STAMP)
	$(PY) notebooks/build.py submission $(if $(RECIPE),--set 'RECIPE=$(RECIPE)') $(if $(DATA),--set 'DATA=$(DATA)')

kaggle: $(RUN_STAMP)
	$(PY) notebooks/kaggle_folder.py --owner '$(OWNER)' $(if $(RECIPE),--set 'RECIPE=$(RECIPE)') $(if $(DATA),--set 'DATA=$(DATA)')

# libtpu compiles for a named TPU without having one. It gets its own folder, because JAX in .venv would look for TPUs.
$(VENV)/libtpu: $(RUN_STAMP)
	$(INSTALL_ONLY) --no-deps --target $@ libtpu==0.0.42.1

preflight: $(VENV)/libtpu
	PYTHONPATH=$(VENV)/libtpu $(PY) -m tools.preflight.forecast $(if $(RECIPE),--recipe '$(RECIPE)') $(if $(MODEL),--model '$(MODEL)') \
	  $(if $(TOPOLOGY),--topology '$(TOPOLOGY)')

# All benchmarks but those of a run that is there already, of the opt-in model, or for import. Four compile for a TPU.
COMPILE := $(addprefix benchmarks/,plan.py packing.py loss.py tpu_compiler.py)
OF_A_RUN := $(addprefix benchmarks/,realmodel.py screenshots.py by_domain.py recipe_pages.py checkout.py)
bench: $(DEV_STAMP) $(VENV)/libtpu
	for script in $(filter-out $(COMPILE) $(OF_A_RUN),$(wildcard benchmarks/*.py)); do \
	  echo "== $$script"; $(PY) "$$script" || exit 1; \
	done
	for script in $(COMPILE); do echo "== $$script"; PYTHONPATH=$(VENV)/libtpu $(PY) "$$script" || exit 1; done

assets: $(RUN_STAMP)
	$(PY) -m tools.build_tiny_models

clean:
	rm -rf artifacts build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
