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
    "green-striped-sweater": "a green sweater with white stripes",
    "yellow-handbag": "a yellow handbag",
}
_SIDE: Final = 512
_SEED: Final = 7
_DATA: Final = Path(".data/demo")


def main() -> int:
    """Makes the pictures; the exit code is that of the first command that failed."""
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "demo")
    target.mkdir(parents=True, exist_ok=True)
    atelier = (sys.executable, "-m", "atelier_cli")
    data = ("--data", str(_DATA))
    began = time.monotonic()
    # A port of its own: a mesh on the usual one may be running.
    started = subprocess.run([*atelier, "up", *data, "--detach", "--port", str(free_ports(1)[0])], check=False)
    if started.returncode:
        return started.returncode
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
