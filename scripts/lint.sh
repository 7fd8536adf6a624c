#!/usr/bin/env bash
# Everything that can be said of the sources without running them. Offline.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin

step() { printf '%s\n' "-- $*"; }

step ruff
$bin/ruff check .
$bin/ruff format --check .

step mypy
$bin/mypy atelier_cli meshkit modelkit models services scripts tests

step contracts
$bin/buf lint
$bin/buf format --diff --exit-code proto
$bin/buf breaking proto --against proto/baseline.binpb
$bin/python scripts/generate_protos.py --check

step secrets
scripts/secrets.sh
