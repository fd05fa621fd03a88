# Two commands: `make quickstart` runs the main job, `make test` runs the tests; `make test-long` those of minutes each.
# GPU builds of torch and faiss instead of CPU builds: `make quickstart DEVICE=gpu`.

PYTHON ?= python3
DEVICE ?= cpu
VENV ?= .venv
# An index with CPU builds of torch, where the default one serves CUDA builds (see docs/install.md).
TORCH_INDEX_URL ?=
QUICKSTART_OUTPUT ?= quickstart

BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
STAMP := $(VENV)/.installed-$(DEVICE)

# A test that hangs ends its process; a process in its place would begin with the same test.
PYTEST := -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

# Where the tests of the web page look for a browser: one of the system, else the one of `make browser`.
BROWSER := $(VENV)/browser

.PHONY: setup quickstart browser test test-long lint stubs docs release-check clean

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) ($(DEVICE) builds); the first time takes a few minutes"
ifeq ($(DEVICE),cpu)
	@$(PIP_INSTALL) $(if $(TORCH_INDEX_URL),--extra-index-url $(TORCH_INDEX_URL)) torch
endif
	@$(PIP_INSTALL) -e ".[$(DEVICE),s3,dev]"
	@touch $@

quickstart: setup
	@$(BIN)/distindex quickstart --output $(QUICKSTART_OUTPUT)

browser: setup
	@test -e $(BROWSER)/chromium || $(BIN)/python -m tests.browser $(BROWSER)

test: setup
	@$(if $(wildcard $(BROWSER)/chromium),DISTINDEX_BROWSER=$(abspath $(BROWSER))) $(BIN)/python -m pytest $(PYTEST) -m "not long"

# Killed drivers, pipelines and nodes, each undone and done again.
test-long: setup
	@$(BIN)/python -m pytest $(PYTEST) -m long

lint: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright --pythonpath $(BIN)/python

# After a change of search.proto.
stubs: setup
	@$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. distindex/serving/search.proto

docs: setup
	@$(BIN)/python docs/lay_out.py build/pages
	@$(BIN)/mkdocs build --strict && echo "build/site/index.html"

release-check: setup
	@$(BIN)/python -m tests.release

clean:
	rm -rf $(VENV) quickstart build dist *.egg-info .pytest_cache .ruff_cache
