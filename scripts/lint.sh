#!/usr/bin/env bash
# All static checks of the sources. Offline.
set -uo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
failed=()

# Every step runs, whatever an earlier one found.
step() {
    printf '%s\n' "-- $*"
    "$@" || failed+=("$*")
}

step $bin/ruff check .
step $bin/ruff format --check .
step $bin/lint-imports --no-cache --no-logo
step $bin/mypy -n 2 atelier_cli meshkit modelkit models services scripts tests bench
step $bin/buf lint
step $bin/buf format --diff --exit-code proto
step $bin/buf breaking proto --against proto/baseline.binpb
step $bin/python scripts/generate_protos.py --check
step $bin/python scripts/settings_page.py --check
step $bin/python scripts/providers_page.py --check
step $bin/python scripts/metrics_page.py --check
step $bin/python -m scripts.dashboards --check
step scripts/secrets.sh

if ((${#failed[@]})); then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
fi
