"""Runs a workflow for each photo, a bounded number at a time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID

from atelier.workflows.v1 import workflow_pb2

from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.outages import AWAY, MOST_TRIES, Outage
from services.monitoring.capture.runs.domain import PhotoRunState, RunRecord, failed
from services.monitoring.capture.runs.store import RunStore
from services.monitoring.capture.runs.workflow_files import (
    PHOTO,
    RunFileError,
    ended,
    files_of,
    filled,
    message_of,
    parsed,
)

_log = get_logger(__name__)

_INTERVAL_SECONDS = 1.0
_AT_ONCE = 4


class PhotoWorkflows(Protocol):
    """Workflows of photos (`services.monitoring.capture.runs.workflow_calls.RunWorkflows`)."""

    async def put(self, file: Path) -> str:
        """Put a file into storage; return its place."""
        ...

    async def create(self, workflow: workflow_pb2.CreateWorkflow, key: UUID) -> UUID:
        """Make a workflow and start it, or find the one that was made under this key."""
        ...

    async def get(self, workflow_id: UUID) -> workflow_pb2.WorkflowPublic:
        """Return a workflow as it stands."""
        ...


@dataclass(frozen=True, slots=True)
class RunFile:
    """The workflow that a setting names.

    Attributes:
        place: Its file.
        definition: What it holds.
        instance: `origin_instance` of the workflows.
        zone: Their `origin_zone`; empty for none.
    """

    place: Path
    definition: Mapping[str, Any]
    instance: str
    zone: str


def read_run_file(place: Path, instance: str, zone: str) -> RunFile:
    """Read the workflow that a setting names.

    Raises:
        ValueError: It cannot be read, or does not hold.
    """
    try:
        found = parsed(place.read_text(encoding="utf-8"))
        missing = [name for name in files_of(found) if not (place.parent / name.removeprefix("@")).is_file()]
    except (OSError, UnicodeDecodeError) as error:
        cause = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
        raise ValueError(f"ATELIER_CAPTURE_WORKFLOW: {place} cannot be read: {cause}") from None
    except RunFileError as error:
        raise ValueError(f"ATELIER_CAPTURE_WORKFLOW: {place} {error}") from None
    if missing:
        raise ValueError(f"ATELIER_CAPTURE_WORKFLOW: {place} names {missing[0]}, and there is no such file beside it")
    return RunFile(place, found, instance, zone)


class HotFolder:
    """Runs a workflow for each photo; safe with replicas.

    Args:
        store: The rows.
        workflows: The workflows.
        file: What is run.
        tenant: Tenant of the workflows.
    """

    def __init__(self, store: RunStore, workflows: PhotoWorkflows, file: RunFile, tenant: str) -> None:
        self._store = store
        self._workflows = workflows
        self._file = file
        self._tenant = tenant
        self._places: dict[str, str] = {}
        # Times that a run met an error that may be of its photo.
        self._tries: Counter[UUID] = Counter()
        self.outage = Outage("runs")
        self._wake = asyncio.Event()
        self.loop = Loop("hot_folder", self.run_once, _INTERVAL_SECONDS, wake=self._wake)

    async def run_once(self) -> bool:
        """Write down which workflows have ended, and make those that wait; body of a loop.

        Where workflows or the object store is away, runs wait.

        Returns:
            Whether there is more to do at once.
        """
        return await self.outage.bridge(self._work)

    async def _work(self) -> bool:
        running = await self._store.runs_in(PhotoRunState.RUNNING, _AT_ONCE)
        left = 0
        for run in running:
            left += not await self._has_ended(run)
        waiting = await self._store.runs_in(PhotoRunState.WAITING, max(0, _AT_ONCE - left))
        for run in waiting:
            await self._make(run)
        return bool(waiting) and left < len(running)

    async def _has_ended(self, run: RunRecord) -> bool:
        assert run.workflow_id is not None, "it runs"
        try:
            now = ended(run, await self._workflows.get(run.workflow_id))
        except MeshError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            now = failed(run, "The workflow is there no more.")
        if now is None:
            return False
        await self._store.settle_run(now)
        _log.info("run_ended", photo_id=str(run.photo_id), state=now.state.value, results=len(now.results))
        return True

    async def _make(self, run: RunRecord) -> None:
        try:
            places = {name: await self._place(name) for name in files_of(self._file.definition)}
            body = filled(self._file.definition, {**places, PHOTO: run.stored_path})
            message = message_of(body, run.photo_id, self._file.instance, self._file.zone, self._tenant)
            workflow_id = await self._workflows.create(message, run.photo_id)
        except OSError as error:
            await self._store.settle_run(failed(run, f"A file of the workflow cannot be read: {error.strerror}."))
            return
        except MeshError as error:
            if error.kind in AWAY:
                raise
            self._tries[run.photo_id] += 1
            if error.kind in TRANSIENT and self._tries[run.photo_id] < MOST_TRIES:
                return
            del self._tries[run.photo_id]
            told = " ".join(f"{one.path}: {one.message}" for one in error.violations) or error.message
            await self._store.settle_run(failed(run, told))
            _log.warning("run_refused", photo_id=str(run.photo_id), error=told)
            return
        self._tries.pop(run.photo_id, None)
        await self._store.started(run.photo_id, workflow_id)

    async def _place(self, name: str) -> str:
        if name not in self._places:
            self._places[name] = await self._workflows.put(self._file.place.parent / name.removeprefix("@"))
        return self._places[name]
