#!/usr/bin/env bash
# Looks for secrets in what git knows (a data folder holds real ones) and people write.
# --accept makes .secrets.baseline anew: everything that is found now was looked at and is none.
set -euo pipefail
cd "$(dirname "$0")/.."
made='^(gen|third_party)/|\.lock$|\.safetensors$|\.binpb$|^\.secrets\.baseline$'
files() { git ls-files -z | grep -zvE "$made"; }

if [ "${1:-}" = --accept ]; then
    # Slim: without line numbers, so that a line added above a false alarm changes nothing.
    files | xargs -0 .venv/bin/detect-secrets scan --slim >.secrets.baseline.new
    mv .secrets.baseline.new .secrets.baseline
else
    files | xargs -0 .venv/bin/detect-secrets-hook --baseline .secrets.baseline
fi
