"""Brings cordons and marks together: what the scheduler tells, and what the pods bear."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Sequence
from typing import Protocol

from meshkit import metrics
from meshkit.errors import MeshError
from meshkit.logging import get_logger
from services.monitoring.marker.domain import CordonedWorker, Pod, mark, plan, unmark
from services.monitoring.marker.kubernetes import PodApi, StaleWatchError

_log = get_logger(__name__)

_PATCHES_AT_ONCE = 8
_PAUSE_SECONDS = 1.0

_PATCHES = metrics.counter("marker_patches", "Pods that were marked or freed of their mark", ("change", "outcome"))
_MARKED = metrics.gauge("marker_pods_marked", "Pods that bear a mark")


class Cordons(Protocol):
    """What the marker asks of the scheduler."""

    async def workers(self) -> Sequence[CordonedWorker]:
        """Return the workers that are cordoned, and those that are taken for marked."""
        ...

    async def note(
        self, *, announced: Collection[str] = (), marked: Collection[str] = (), unmarked: Collection[str] = ()
    ) -> Collection[str]:
        """Tell of marks; return those that were announced and may be marked."""
        ...


class Marker:
    """Marks the pods of cordoned workers.

    Args:
        pods: The pods.
        cordons: The scheduler.
        unmark_seconds: How long a pod keeps its mark after its worker is uncordoned.
    """

    def __init__(self, pods: PodApi, cordons: Cordons, *, unmark_seconds: float = 0.0) -> None:
        self._unmark_seconds = unmark_seconds
        self._unmark_since: dict[str, float] = {}
        self._api = pods
        self._cordons = cordons
        self._pods: dict[str, Pod] = {}
        self._known = asyncio.Event()
        self._places = asyncio.Semaphore(_PATCHES_AT_ONCE)

    async def follow(self) -> None:
        """Know the pods, until cancelled: list them, then watch; list again where a watch cannot go on."""
        while True:
            try:
                self._pods, version = await self._api.pods()
                self._known.set()
                async for pod, there in self._api.watch(version):
                    if there:
                        self._pods[pod.name] = pod
                    else:
                        self._pods.pop(pod.name, None)
            except StaleWatchError:
                continue
            except MeshError as error:
                _log.warning("pods_not_known", reason=error.reason)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def run_once(self) -> None:
        """Mark and unmark what is to be, and tell the scheduler what is confirmed.

        Raises:
            MeshError: `UNAVAILABLE` where the scheduler or Kubernetes does not answer; nothing is told that is not so.
        """
        await self._known.wait()
        workers = await self._cordons.workers()
        todo = plan(self._pods, workers)
        # What the scheduler does not know of comes first: it must not report less while such a mark may be in the way.
        if todo.marked or todo.unmarked:
            await self._cordons.note(marked=todo.marked, unmarked=todo.unmarked)
        freed = await self._patched("unmark", [self._pods[name] for name in self._settled(todo.unmark)])
        accepted = await self._cordons.note(announced=todo.announce) if todo.announce else ()
        marked = await self._patched("mark", [self._pods[name] for name in accepted if name in self._pods])
        if freed or marked:
            await self._cordons.note(marked=marked, unmarked=freed)
        _MARKED.set(sum(pod.is_marked for pod in self._pods.values()))

    def _settled(self, names: Collection[str]) -> list[str]:
        """Return those that nobody chooses any more: a pod may be chosen on what was reported before."""
        now = time.monotonic()
        self._unmark_since = {name: self._unmark_since.get(name, now) for name in names if name in self._pods}
        return [name for name, since in self._unmark_since.items() if now - since >= self._unmark_seconds]

    async def _patched(self, change: str, pods: Sequence[Pod]) -> list[str]:
        """Change pods; return the names of those whose change is confirmed."""
        done = await asyncio.gather(*(self._patch(change, pod) for pod in pods))
        return [pod.name for pod, confirmed in zip(pods, done, strict=True) if confirmed]

    async def _patch(self, change: str, pod: Pod) -> bool:
        async with self._places:
            try:
                changed = await self._api.annotate(pod, mark(pod) if change == "mark" else unmark(pod))
            except MeshError as error:
                _PATCHES.labels(change, "failed").inc()
                _log.warning("pod_not_marked", pod=pod.name, change=change, reason=error.reason)
                return False
        _PATCHES.labels(change, "done").inc()
        if changed is None:
            self._pods.pop(pod.name, None)
            return change == "unmark"
        _log.info("pod_marked", pod=pod.name, change=change)
        self._pods[pod.name] = changed
        return True
