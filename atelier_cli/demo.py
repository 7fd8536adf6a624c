"""`make demo`: a mesh on its embedded default, four pictures from prompts, and nothing left running.

Usage: python -m atelier_cli.demo [FOLDER]
"""

import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from atelier_cli.embedded.process import free_ports
from atelier_cli.terminal import err

PROMPTS: Final = {
    "red-dress": "a red dress",
    "blue-sneaker": "a blue sneaker",
    "pink-striped-skirt": "a pink skirt with white stripes",
    "yellow-handbag": "a yellow handbag",
}
_SIDE: Final = 512
_SEED: Final = 4
_DATA: Final = Path(".data/demo")


def main() -> int:
    """Make the pictures; the exit code is that of the first command that failed."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    target.mkdir(parents=True, exist_ok=True)
    atelier = (sys.executable, "-m", "atelier_cli")
    data = ("--data", str(_DATA))
    began = time.monotonic()
    err.print("Starting a mesh: PostgreSQL, NATS, an S3 store, gateway, tasks and a worker.")
    # A port of its own: a mesh may be running on the default port.
    up = (*atelier, "up", *data, "--detach", "--port", str(free_ports(1)[0]))
    started = subprocess.run(up, check=False, capture_output=True, text=True)
    if started.returncode:
        err.print(started.stderr, markup=False)
        return started.returncode
    err.print(f"It is up after {time.monotonic() - began:.0f} s and makes pictures.")
    try:
        for name, prompt in PROMPTS.items():
            size = ("--width", str(_SIDE), "--height", str(_SIDE), "--seed", str(_SEED))
            done = subprocess.run(
                [*atelier, "generate", prompt, *data, *size, "-o", str(target / f"{name}.png")], check=False
            )
            if done.returncode:
                return done.returncode
    finally:
        subprocess.run([*atelier, "down", *data], check=False)
    err.print(f"{len(PROMPTS)} pictures after {time.monotonic() - began:.0f} s. They are in [bold]{target}/[/bold]:")
    for name, prompt in PROMPTS.items():
        err.print(f"  {target / f'{name}.png'}  {prompt}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
