"""Run every benchmark, one after the other; each prints its own table."""

from __future__ import annotations

import subprocess
import sys

MODULES = ("bench.idle", "bench.throughput", "bench.workflows", "bench.providers", "bench.picture")


def main() -> int:
    """Run them; returns the first status that is not 0."""
    for module in MODULES:
        print(f"\n## {module}", flush=True)
        status = subprocess.run([sys.executable, "-m", module], check=False).returncode
        if status:
            return status
    return 0


if __name__ == "__main__":
    sys.exit(main())
