"""`python -m services.training.library.conversion.child`: makes one file of torch safetensors, for `converter`.

It is given two open files and nothing else, and gives up all rights before it reads the first byte.
"""

from __future__ import annotations

import argparse
import codecs
import json
import os
import sys
from collections.abc import Sequence
from typing import Any, BinaryIO, cast

from meshkit.children import die_with_parent
from services.training.library.conversion import jail
from services.training.library.conversion.archives import read_archive
from services.training.library.conversion.pickles import RefusedPickleError
from services.training.library.conversion.writing import convert

_NICENESS = 5
_STDOUT = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Convert the file, tell on the standard output what came of it, and return the exit status."""
    parser = argparse.ArgumentParser(description="Converts a file for a service, which starts it.")
    for name in ("source", "into", "parent", "memory", "file-bytes", "cpu-seconds"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    os.nice(_NICENESS)
    codecs.lookup("cp437")  # names in a zip may need it, and no module can be opened later
    size = os.fstat(options.source).st_size
    with os.fdopen(options.source, "rb") as source, os.fdopen(options.into, "wb") as into:
        measures = jail.enter(
            memory_bytes=options.memory,
            file_bytes=options.file_bytes,
            cpu_seconds=options.cpu_seconds,
            keep=(_STDOUT, options.source, options.into),
        )
        # Whatever ends this process from here on is the file's doing.
        _tell({"measures": measures})
        _tell(_converted(cast("BinaryIO", source), cast("BinaryIO", into), size))
    return 0


def _converted(source: BinaryIO, into: BinaryIO, size: int) -> dict[str, Any]:
    try:
        return {"tensors": convert(read_archive(source, size), source, into)}
    except RefusedPickleError as refusal:
        return {"refusal": refusal.reason}
    except (MemoryError, RecursionError):
        return {"refusal": "it needs more memory to read than a LoRA may take"}
    except OSError:
        return {"refusal": "it holds more than it may"}


def _tell(answer: dict[str, Any]) -> None:
    os.write(_STDOUT, json.dumps(answer).encode() + b"\n")


if __name__ == "__main__":
    sys.exit(main())
