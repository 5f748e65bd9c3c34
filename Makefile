# Everything runs in its own environment, .venv. `make` alone lists what can be made.

PYTHON ?= python3
ARGS ?=

BIN := .venv/bin
INSTALLED := .venv/installed
CODE := $(wildcard metarl_l2f envs launchers tests benchmarks studies examples)

# One name a launcher: `make cheetah-vel` runs launchers/cheetah_vel.py, whose first line is its help below.
LAUNCHERS := navigation cheetah-dir cheetah-vel ant rand-params sinusoid image-classification prototypes embeddings leo evaluate \
  figures play viewer methods

.DEFAULT_GOAL := help
.PHONY: help install $(LAUNCHERS) images test test-journeys test-faults coverage test-mutations lint types format clean

help: ## list the targets
	@echo 'usage: make TARGET [ARGS="..."]   (ARGS go to the launcher, or to pytest; PYTHON=... chooses the interpreter)'
	@echo
	@for name in $(LAUNCHERS); do \
	  sed -n "1s/\"\"\"//g; 1s/^/  $$(printf '%-22s ' $$name)/p" "launchers/$$(echo $$name | tr - _).py"; \
	done
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-22s %s\n", $$1, $$2 }' Makefile

$(LAUNCHERS): $(INSTALLED)
	$(BIN)/python launchers/$(subst -,_,$@).py $(ARGS)

images: image-classification ## another name of image-classification

install: $(INSTALLED) ## create .venv and install the package, editable, with its tools

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'metarl_l2f needs Python 3.11 or newer, but "$(PYTHON)" is' \
	    "$$($(PYTHON) --version 2>&1 || true). Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo 'Installing into .venv. The first time this downloads PyTorch and may take some minutes.'
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

SPREAD := --numprocesses auto --maxprocesses 4

# A file's tests share what they train, so they stay together. ARGS="-n 0 -k NAME" runs a few without starting processes.
test: lint types ## check style and types, then run the tests
	$(BIN)/pytest --quiet $(SPREAD) --dist loadfile $(ARGS)

# Most of the time goes into starting programs, so several tests run at once.
test-journeys: $(INSTALLED) ## run every command and snippet that the documents print, shortened, to its end; some minutes
	$(BIN)/pytest --quiet --thorough $(SPREAD) --durations 10 tests/journeys $(ARGS)

test-faults: $(INSTALLED) ## the fault suites in full, with their figures, some minutes: kills, damage, full disks, hostile files
	$(BIN)/pytest --quiet --thorough tests/faults $(ARGS)

coverage: $(INSTALLED) ## which lines of metarl_l2f and envs the tests run
	$(BIN)/pytest --quiet $(SPREAD) --dist loadfile --cov --cov-report=term-missing:skip-covered $(ARGS)

test-mutations: $(INSTALLED) ## break the core's equations on purpose, and see that a test fails each time
	$(BIN)/python tests/mutations.py $(ARGS)

# For environments that were made before it was needed.
$(BIN)/lint-imports:
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'

# Like mypy, import-linter does not read setup.cfg's package_dir, so it is shown the folders under their installed names.
lint: $(INSTALLED) $(BIN)/lint-imports ## check style and formatting with ruff, and who imports whom with import-linter
	$(BIN)/ruff check --quiet $(CODE)
	$(BIN)/ruff format --quiet --check $(CODE)
	@rm -rf build/imports && mkdir -p build/imports/metarl_l2f
	@ln -s "$(CURDIR)"/metarl_l2f/* "$(CURDIR)"/envs "$(CURDIR)"/launchers build/imports/metarl_l2f
	@ln -s "$(CURDIR)"/studies "$(CURDIR)"/benchmarks build/imports
	@echo '$(BIN)/lint-imports setup.cfg'; cd build/imports && \
	  found=$$("$(CURDIR)"/$(BIN)/lint-imports --no-logo --no-cache "$(CURDIR)"/setup.cfg) || { echo "$$found"; exit 1; }

# mypy does not read setup.cfg's package_dir, so it is shown the folders under their installed names. Tests are left out:
# many pass a wrong value on purpose.
types: $(INSTALLED) ## check types with mypy
	@rm -rf build/types && mkdir -p build/types/metarl_l2f
	@ln -s ../../../metarl_l2f/__init__.py ../../../envs ../../../launchers build/types/metarl_l2f
	$(BIN)/mypy metarl_l2f build/types/metarl_l2f/envs build/types/metarl_l2f/launchers studies benchmarks

format: $(INSTALLED) ## rewrite the code in the house format
	$(BIN)/ruff check --quiet --fix --exit-zero $(CODE)
	$(BIN)/ruff format $(CODE)

clean: ## remove .venv, builds and caches; keep runs/
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
