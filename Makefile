# Every target sets up what it needs, once: the stamp is older than pyproject.toml or constraints.txt only when the
# environment has to follow a change of them.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKSPACE ?= runs/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/installed

.PHONY: setup demo test lint bench

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt \
	  --editable '.[evaluation,tracking,s3,dev]'
	touch $@

demo: $(STAMP)
	$(BIN)/xrec run configs/demo.yaml --workspace $(WORKSPACE)

test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow'

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)
	@set -e; for script in benchmarks/*.py; do echo "== $$script"; $(BIN)/python $$script; done
