# setup: everything that development needs · demo: the whole mesh, once · test: all checks and tests · bench: the short set
# Where pip would take the far larger CUDA build of torch, set PIP_EXTRA_INDEX_URL to PyTorch's CPU index.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
TORCH := torch==2.13.0
TRITON := triton==3.9.0
FOLDERS := common kernels cache edge cloud router training bench models
PROTOS := $(wildcard protos/tiermesh/v1/*.proto)
PROTOC = PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=$(1) --mypy_out=quiet:$(1) \
	--grpc_python_out=$(1) --mypy_grpc_out=quiet:$(1) $(PROTOS)

.PHONY: help setup check lint types stubs-check layers format stubs test demo bench wheels links redis

help:
	@head -1 Makefile | cut -c3-

$(BIN)/python:
	$(PYTHON) -m venv .venv
	$(PIP) --upgrade pip

# What it takes to run the mesh; much less than what it takes to develop it.
.venv/.runtime: pyproject.toml | $(BIN)/python
	$(PIP) $(TORCH)
	$(PIP) -e '.[edge,router,cloud]'
	@touch $@

# Triton has wheels for Linux alone; where there is none, only the GPU kernels are missing.
.venv/.dev: .venv/.runtime
	$(PIP) $(TRITON) || echo "no wheel of $(TRITON) here: kernels run their torch references"
	$(PIP) -e '.[dev]'
	@touch $@

setup: .venv/.dev redis

# Some tests start a redis-server of their own; the package's own daemon stays off.
redis:
	@command -v redis-server >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -qq redis-server >/dev/null; } \
		|| echo "redis-server is missing and can't be installed here: tests that need it are skipped"

check: .venv/.dev lint types stubs-check layers

lint: .venv/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/buf lint

# mypy sees each folder under its import name through links; sdk/ is the package's root, so its files are linked one by one.
links:
	@rm -rf .typing && mkdir -p .typing/tiermesh
	@for folder in $(FOLDERS); do ln -s "../../$$folder" ".typing/tiermesh/$$folder"; done
	@ln -s ../../protos/tiermesh/v1 .typing/tiermesh/v1
	@for file in sdk/*.py sdk/py.typed; do ln -s "../../$$file" .typing/tiermesh/; done

types: .venv/.dev links
	MYPYPATH=.typing $(BIN)/mypy -p tiermesh

stubs-check: .venv/.dev
	@new=$$(mktemp -d) && trap 'rm -rf "$$new"' EXIT && $(call PROTOC,"$$new") \
		&& diff -rq -x '*.proto' -x __init__.py -x __pycache__ "$$new/tiermesh/v1" protos/tiermesh/v1 \
		|| { echo "generated stubs are stale: run make stubs"; exit 1; }

layers: .venv/.dev
	$(BIN)/pytest -q tests/unit/house/test_layering.py

format: .venv/.dev
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

stubs: .venv/.dev
	$(call PROTOC,protos)

# The stamp lets benchmarks refuse a tree that was not tested; it holds only if nothing changed meanwhile.
test: setup check
	@before=$$($(BIN)/python -P -m tiermesh.bench.tree); rm -f .green; \
		$(BIN)/pytest; \
		if [ "$$before" = "$$($(BIN)/python -P -m tiermesh.bench.tree)" ]; then echo "$$before" > .green; \
		else echo "the tree changed while its tests ran: no green stamp"; fi

demo: .venv/.runtime
	@$(BIN)/tiermesh demo

bench: .venv/.dev
	$(BIN)/tiermesh bench walk

# The wheelhouse that the images of deploy/ install from.
wheels: $(BIN)/python
	PYTHON=$(BIN)/python deploy/wheels.sh
