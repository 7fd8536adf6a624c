"""What follows from the child's state: health, metrics, and whether waiting attempts stay here."""

from __future__ import annotations

import asyncio

from atelier.tasks.v1.worker_service_pb2 import WarmState

from meshkit.logging import get_logger
from meshkit.server import MeshServer
from meshkit.worker import measures
from meshkit.worker.attempts import Attempts
from meshkit.worker.cancel_listener import CancelListener
from meshkit.worker.device_runner import DeviceRunner
from meshkit.worker.leases import LeaseClient
from meshkit.worker.supervisor import ChildSupervisor

_log = get_logger(__name__)


def warm_state(supervisor: ChildSupervisor) -> WarmState:
    """Return what is resident, as the scheduler wants to know it."""
    models = supervisor.resident.models
    return WarmState(
        models=[model.name for model in models], loras=sorted({lora for model in models for lora in model.loras})
    )


class ChildWatch:
    """Passes changes of the child and of the slots on to whom they concern.

    Args:
        service: Full name of the service whose health follows the child's.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._changed = asyncio.Event()
        self._server: MeshServer | None = None
        self._supervisor: ChildSupervisor | None = None
        self._executor: DeviceRunner | None = None
        self._attempts: Attempts | None = None
        self._leases: LeaseClient | None = None

    def bind(
        self,
        *,
        server: MeshServer,
        supervisor: ChildSupervisor,
        executor: DeviceRunner,
        attempts: Attempts,
        leases: LeaseClient,
    ) -> None:
        """Name whom changes concern; they are built after this."""
        self._server = server
        self._supervisor = supervisor
        self._executor = executor
        self._attempts = attempts
        self._leases = leases
        measures.SLOTS.set(executor.slots)
        measures.SLOTS_BUSY.set_function(lambda: executor.busy)

    def changed(self) -> None:
        """Note that the child, or what it holds, has changed."""
        self._changed.set()
        if self._executor is not None:
            self._executor.pump()
        self.room()

    def expected_peers(self) -> bool:
        """More work is on its way to the slots."""
        return self._attempts is not None and self._attempts.preparing()

    def room(self) -> None:
        """Note that a slot was taken or given back."""
        if self._leases is not None:
            self._leases.room()

    def news(self) -> None:
        """Something may have been cancelled."""
        if self._leases is not None:
            self._leases.news()

    def session(self, session_id: str | None, news: CancelListener) -> None:
        """Note that the session has changed or is lost."""
        measures.SESSION.set(0 if session_id is None else 1)
        news.follow(session_id)

    async def run(self) -> None:
        """Follow the child's health, until cancelled."""
        assert self._supervisor is not None
        assert self._server is not None
        assert self._attempts is not None
        healthy = True
        while True:
            await self._changed.wait()
            self._changed.clear()
            measures.MODEL_BYTES.set(sum(model.bytes for model in self._supervisor.resident.models))
            if self._supervisor.healthy is not healthy:
                healthy = self._supervisor.healthy
                _log.warning("health_changed", healthy=healthy)
                for name in ("", self._service):
                    await self._server.set_health(name, serving=healthy)
            if not healthy:
                # Others may be able to; here they would wait for a child that does not come up.
                self._attempts.hand_back_waiting()
