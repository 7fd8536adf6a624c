#!/usr/bin/env bash
# Scans for secrets in files that git knows and people write; a data folder, which holds real ones, is not scanned.
# --accept rewrites .secrets.baseline: all findings were looked at and are false alarms.
set -euo pipefail
cd "$(dirname "$0")/.."
made='^(gen|third_party)/|\.lock$|\.safetensors$|\.binpb$|^\.secrets\.baseline$'
files() { git ls-files -z | grep -zvE "$made"; }

if [ "${1:-}" = --accept ]; then
    # Slim: without line numbers, so that a line added above a false alarm changes nothing.
    files | xargs -0 .venv/bin/detect-secrets scan --slim >.secrets.baseline.new
    mv .secrets.baseline.new .secrets.baseline
else
    # It works on one core, whatever it is told.
    files | xargs -0 -P 2 -n 100 .venv/bin/detect-secrets-hook --baseline .secrets.baseline
fi
