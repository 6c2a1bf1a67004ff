# Everything from a bare python3: `make run` and `make test` install what they need (so does `make install`, and no more).
# TORCH_INDEX=URL takes torch from another index: its builds (2.13.0+cpu) count as newer than PyPI's, all else comes from PyPI.
PYTHON ?= python3
# what is installed beside the application: Docker leaves the development tools out
EXTRAS ?= [dev]
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
INDEX := $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))
# modules are compiled once, not by each of the hundreds of processes that these start
test chaos bench: export PYTHONDONTWRITEBYTECODE :=

.PHONY: install run test chaos bench gpu gpu-wheels next clients catalogue check clean

install: $(STAMP)

# another index than the last time: PyTorch is replaced, although its version may be the same
TORCH_FROM := $(VENV)/.torch-index
ifneq ($(TORCH_INDEX),)
ifneq ($(TORCH_INDEX),$(shell cat $(TORCH_FROM) 2>/dev/null))
.PHONY: other-torch
$(STAMP): other-torch
other-torch:
	@rm -f $(TORCH_FROM)
	@test ! -x $(BIN)/python || $(BIN)/python -m pip uninstall -q -y --disable-pip-version-check torch
endif
endif

$(STAMP): pyproject.toml setup.py constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Adapter Studio needs Python 3.11 or newer. Call: make install PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "This Python has no venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Creating $(VENV) (1 of 3)"
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch (2 of 3)"
	$(BIN)/python -m pip install --disable-pip-version-check $(INDEX) -c constraints.txt torch
	@$(if $(TORCH_INDEX),echo $(TORCH_INDEX) > $(TORCH_FROM),rm -f $(TORCH_FROM))
	@echo "Installing Adapter Studio (3 of 3)"
	$(BIN)/python -m pip install --disable-pip-version-check $(INDEX) -c constraints.txt -e '.$(EXTRAS)'
	@touch $(STAMP)
	@echo "Installed."

run: $(STAMP)
	@$(BIN)/studio up

# The files that take longest come first, so that no process waits for one at the end; `long` tests run in `make chaos`.
# Browser tests take a Chromium that is there, else Playwright's own installer, else they are left out in one visible line.
test: $(STAMP)
	@$(BIN)/python -m tests.browser
	$(BIN)/python -m pytest -q -n 2 --dist loadfile --no-loadscope-reorder -m "not long" tests/e2e tests/integration tests/chaos tests/unit

# llama.cpp for Python, built once and kept apart: it reads GGUF exports that transformers does not know, and makes K-quants
LLAMA_CPP := $(VENV)/llama-cpp
$(LLAMA_CPP)/.built: $(STAMP)
	@echo "Building llama-cpp-python (some minutes, a C++ compiler and cmake are needed)"
	$(BIN)/python -m pip install -q --disable-pip-version-check --no-deps --target $(LLAMA_CPP) "llama-cpp-python>=0.3.36" "diskcache>=5.6"
	@touch $@

# a storm of kills over a real studio (a quarter of an hour), fault injection in its long form, every cell of the methods' table,
# every family of models that transformers knows, a thousand random batches of adapters, and all tests that are marked `long`
chaos: $(STAMP) $(LLAMA_CPP)/.built
	$(BIN)/python -m tests.chaos.storm --kills $(or $(KILLS),200)
	STUDIO_ALL_FAMILIES=1 STUDIO_KILLS=10 STUDIO_EXAMPLES=30 STUDIO_CANCELS=50 $(BIN)/python -m pytest -q --timeout 3600 tests/chaos
	STUDIO_ALL_FAMILIES=1 PYTHONPATH=$(LLAMA_CPP) $(BIN)/python -m pytest -q -s --timeout 3600 tests/integration/test_gguf_families.py
	PYTHONPATH=$(LLAMA_CPP) $(BIN)/python -m tests.bench gguf
	STUDIO_ALL_CELLS=1 $(BIN)/python -m pytest -q --timeout 7200 tests/integration/test_methods.py tests/integration/test_scripts.py \
		tests/integration/test_jobs_training.py
	STUDIO_ALL_MODELS=1 $(BIN)/python -m pytest -q --timeout 3600 tests/unit/test_catalogue_known.py tests/unit/test_memory.py
	STUDIO_BATCHES=1000 $(BIN)/python -m pytest -q --timeout 3600 tests/unit/test_engine_slots.py
	STUDIO_ALL_CELLS=1 $(BIN)/python -m pytest -q --timeout 3600 -m long tests/unit tests/integration tests/e2e

# side by side with what people would use instead; TOPICS="reading report" for some of them
bench: $(STAMP)
	@$(BIN)/python -m tests.bench $(TOPICS)

# what only a card can settle, within eight minutes: OUT names the folder of the figures, WITHIN other seconds; 40 GB of room are needed there meanwhile
gpu: $(STAMP)
	@$(BIN)/python -m tests.gpu --out $(or $(OUT),build/gpu) $(if $(WITHIN),--within $(WITHIN))

# the wheels for `python3 -m tests.gpu` on a machine that has CUDA and torch and no network: PYTHON_VERSION is that machine's
gpu-wheels: $(STAMP)
	@$(BIN)/python -m tests.gpu.wheels --to $(or $(TO),build/gpu-wheels) --python $(or $(PYTHON_VERSION),3.12)

# the newest releases of the pinned libraries in a scratch environment, and the contract tests on them; DRY=1 only resolves
next: $(STAMP)
	@$(BIN)/python -m tests.newest $(if $(DRY),--dry-run)

# programs that people use with /v1, each in an environment of its own (NAMES="openai lm-eval" for some of them); and a client that
# openapi-python-client generates from /api/openapi.json, which lists the jobs of a running studio
CLIENTS := $(VENV)/clients
clients: $(STAMP)
	@$(BIN)/python -m tests.clients.real $(CLIENTS)/real $(NAMES)
	@test -x $(CLIENTS)/bin/openapi-python-client || { $(PYTHON) -m venv $(CLIENTS) && $(CLIENTS)/bin/python -m pip install -q --disable-pip-version-check "openapi-python-client>=0.29,<0.30"; }
	@$(BIN)/python -m tests.clients $(CLIENTS)

# what the installed transformers and peft say of the models of the catalogue is stored again
catalogue: $(STAMP)
	@$(BIN)/python -m studio.catalogue.probed

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
