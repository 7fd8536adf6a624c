"""`python -m services.training.trainer.child`: the process that trains, started for one job and ended with it."""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import Sequence

from atelier.inference.v1.child_pb2 import ChildHello

from meshkit.children import die_with_parent
from meshkit.logging import configure
from meshkit.worker.batch_runner import BatchRunner
from meshkit.worker.child import ChildRuntime
from meshkit.worker.pairs import TRAINING


def main(arguments: Sequence[str] | None = None) -> int:
    """Work until the trainer says stop; returns the exit status."""
    parser = argparse.ArgumentParser(description="Executes a training job for a trainer, which starts it.")
    parser.add_argument("--device", required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--log-level", required=True)
    parser.add_argument("--fd", type=int, required=True)
    parser.add_argument("--parent", type=int, required=True)
    options = parser.parse_args(arguments)
    die_with_parent(options.parent)
    configure("trainer-child", options.log_level)
    sock = socket.socket(fileno=options.fd)
    os.set_inheritable(options.fd, False)  # noqa: FBT003 -- os's own signature
    from services.training.trainer.running import TrainingJobHandler  # noqa: PLC0415 -- torch, which takes seconds

    handler = TrainingJobHandler(options.device, options.threads)
    runner = BatchRunner({TRAINING: handler}, device=handler.device)
    runtime = ChildRuntime(sock, execute=runner.execute, resident=runner.resident, threads=1)
    return runtime.serve(ChildHello(device=handler.device))


if __name__ == "__main__":
    sys.exit(main())
