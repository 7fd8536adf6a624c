"""`python -m services.training.trainer.dataset.child`: works on the pictures of a dataset, one at a time.

The pictures have been judged (`meshkit.images`). What an odd one still does to this process, it does to this process
alone: the parent takes it out and starts another. Reads a job from a file; `working` does it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import sys
from collections.abc import Sequence
from pathlib import Path

from meshkit.children import die_with_parent

_NICENESS = 5  # the worker's event loop goes before the pictures that it waits for


def main(arguments: Sequence[str] | None = None) -> int:
    """Do a job; return the exit status."""
    parser = argparse.ArgumentParser(description="Works on the pictures of a dataset for a worker, which starts it.")
    parser.add_argument("job", type=Path)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("--memory", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    os.nice(_NICENESS)
    # Some systems know a limit and do not let it be set; the parent's time limit holds there all the same.
    for limit, most in ((resource.RLIMIT_AS, options.memory), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))
    # Libraries write to the standard output as they like; the parent reads what is told and nothing else.
    told = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    from services.training.trainer.dataset.working import do_job  # noqa: PLC0415 -- after the limits are set

    do_job(json.loads(options.job.read_text("utf-8")), told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
