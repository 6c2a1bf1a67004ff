# Everything from a bare python3: `make install`, `make run`, `make test`. TORCH_INDEX=URL takes torch from another index.
PYTHON ?= python3
# what is installed beside the application: Docker leaves the development tools out
EXTRAS ?= [dev]
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install run test chaos check clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Adapter Studio needs Python 3.11 or newer. Call: make install PYTHON=python3.11"; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || { echo "This Python has no venv module. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	@echo "Creating $(VENV) (1 of 3)"
	$(PYTHON) -m venv $(VENV)
	@echo "Installing PyTorch (2 of 3)"
	$(BIN)/python -m pip install --disable-pip-version-check $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) -c constraints.txt torch
	@echo "Installing Adapter Studio (3 of 3)"
	$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e '.$(EXTRAS)'
	@touch $(STAMP)
	@echo "Installed. Next: make run"

run: $(STAMP)
	@$(BIN)/studio up

# Browser tests take a Chromium that is there, else Playwright's own installer, else they are left out in one visible line.
test: $(STAMP)
	@$(BIN)/python -m tests.browser
	$(BIN)/python -m pytest -q tests/unit tests/integration tests/chaos tests/e2e

# the kill tests in their long form
chaos: $(STAMP)
	STUDIO_KILLS=10 $(BIN)/python -m pytest -q tests/chaos

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
