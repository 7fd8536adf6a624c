#!/usr/bin/env bash
# Have prometheus and promtool for the tests: where neither is installed, unpack Debian's package into .cache/prometheus.
# It needs no root and installs no service. Without apt, or offline, there is none, and the tests that need it are skipped.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=.cache/prometheus
if command -v promtool >/dev/null && command -v prometheus >/dev/null; then exit; fi
if [[ -x $folder/usr/bin/promtool ]] || ! command -v apt-get >/dev/null; then exit; fi
mkdir -p "$folder"
scratch=$(mktemp -d "$folder/download.XXXX")
trap 'rm -rf "$scratch"' EXIT
cd "$scratch"
if ! apt-get download -qq prometheus >/dev/null 2>&1; then
    # A fresh machine has no list of packages yet; only root may fetch it.
    apt-get update -qq >/dev/null 2>&1 || true
    if ! apt-get download -qq prometheus >/dev/null 2>&1; then
        echo "Debian's package prometheus is not to be had: tests that need it are skipped." >&2
        exit
    fi
fi
dpkg-deb -x prometheus_*.deb ..
