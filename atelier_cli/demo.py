"""`make demo`: a mesh on its embedded default, four pictures from prompts, and nothing left running.

Usage: python -m atelier_cli.demo [FOLDER]
"""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def mesh_for_a_while(data: Path) -> Iterator[None]:
    """Start a mesh on a folder, and stop it after the block.

    Raises:
        SystemExit: It did not start.
    """
    atelier = (sys.executable, "-m", "atelier_cli")
    began = time.monotonic()
    err.print("Starting a mesh: PostgreSQL, NATS, an S3 store, gateway, tasks and a worker.")
    # A port of its own: a mesh may be running on the default port.
    up = (*atelier, "up", "--data", str(data), "--detach", "--port", str(free_ports(1)[0]))
    # Nothing is trained here, and a process more makes the start of all the others slower.
    environment = {"ATELIER_TRAINER": "off", **os.environ}
    started = subprocess.run(up, check=False, capture_output=True, text=True, env=environment)
    if started.returncode:
        err.print(started.stderr, markup=False)
        raise SystemExit(started.returncode)
    err.print(f"It is up after {time.monotonic() - began:.0f} s.")
    try:
        yield
    finally:
        subprocess.run([*atelier, "down", "--data", str(data)], check=False)


def main() -> int:
    """Make the pictures; the exit code is that of the first command that failed."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    target.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    with mesh_for_a_while(_DATA):
        for name, prompt in PROMPTS.items():
            size = ("--width", str(_SIDE), "--height", str(_SIDE), "--seed", str(_SEED))
            file = ("--data", str(_DATA), "-o", str(target / f"{name}.png"))
            done = subprocess.run([sys.executable, "-m", "atelier_cli", "generate", prompt, *size, *file], check=False)
            if done.returncode:
                return done.returncode
    err.print(f"{len(PROMPTS)} pictures after {time.monotonic() - began:.0f} s. They are in [bold]{target}/[/bold]:")
    for name, prompt in PROMPTS.items():
        err.print(f"  {target / f'{name}.png'}  {prompt}", markup=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
