"""The mesh that pictures go through: started for the first part that needs it, and again after a part that failed."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import fields
from pathlib import Path

from atelier_cli.embedded.process import RunningServer, free_ports
from atelier_cli.embedded.s3 import S3Ports, S3Server
from bench import stacks
from bench.gpu.setting import SHIPPED, RunningMesh, Scale

# Every picture that a measurement queues is leased before the first of them runs, so that batches are full.
_PREFETCH = 256


class Mesh:
    """One mesh on the shipped model, whose worker also serves the large one.

    Args:
        folder: Where its data lies.
        device: A torch device for the worker.
        scale: How large the batches are.
        model: Folder of the large model, which may be written after the start.
    """

    def __init__(self, folder: Path, device: str, scale: Scale, model: Path) -> None:
        self._folder = folder
        self._starts = 0
        self._stack = ExitStack()
        self._running: RunningMesh | None = None
        self._environment = {
            "ATELIER_MODEL": str(SHIPPED),
            "ATELIER_EXTRA_MODELS": str(model),
            "ATELIER_DEVICE": device,
            "ATELIER_WORKER_TASK_TYPES": "GENERATION",
            "ATELIER_WORKER_SLOTS": "1",
            "ATELIER_WORKER_MAX_BATCH": str(max(scale.batches)),
            "ATELIER_WORKER_PREFETCH": str(_PREFETCH),
        }

    def running(self) -> RunningMesh:
        """Return the mesh, started if need be."""
        if self._running is None:
            self._starts += 1
            folder = self._folder / str(self._starts)
            folder.mkdir(parents=True)
            for each in (self._folder, folder):
                each.chmod(0o711)  # the embedded PostgreSQL may run under another user
            objects = self._stack.enter_context(_objects(folder))
            environment = {
                **self._environment,
                "ATELIER_S3_ENDPOINT": objects.endpoint,
                "ATELIER_S3_ACCESS_KEY": objects.access_key,
                "ATELIER_S3_SECRET_KEY": objects.secret_key,
            }
            stack = self._stack.enter_context(stacks.mesh(folder, None, environment))
            self._running = RunningMesh(stack, objects.endpoint, objects.access_key, objects.secret_key)
        return self._running

    def close(self) -> None:
        """Stop it, if it runs."""
        self._running = None
        self._stack.close()


@contextmanager
def _objects(folder: Path) -> Iterator[S3Server]:
    """Yield an object store beside the mesh, whose keys are known here: parts put LoRAs into it."""
    names = [field.name for field in fields(S3Ports)]
    ports = S3Ports(**dict(zip(names, free_ports(len(names)), strict=True)))
    server = S3Server(folder / "s3", ports, secrets.token_hex(8), secrets.token_hex(16), folder / "s3.log")
    running = RunningServer(server)
    running.start()
    try:
        yield server
    finally:
        running.stop()
