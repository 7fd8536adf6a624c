"""Scale-in from the cordon to the number that KEDA reads: the marker and the scaler beside the scheduler."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from meshkit.channel import MeshChannel
from services.monitoring.marker import composition as marker
from services.monitoring.marker.config import MarkerSettings
from services.monitoring.marker.domain import COST, FORMER, LOWERED
from services.monitoring.scaler.demand import SchedulersDemand
from services.monitoring.scaler.server import ScalerServer
from services.monitoring.scaler.service import ScalerDesk
from tests.certificates import Authority
from tests.integration.tasks.conftest import SECRET, Mesh, StartMesh, until
from tests.keda import KedaClient
from tests.kubernetes_api import KubernetesApi

TRIGGER = {"queue": "inference", "slots": "4"}
TOKEN = "token-of-the-service-account"


class Cluster:
    """The scheduler, the marker, the scaler, Kubernetes and KEDA."""

    def __init__(self, mesh: Mesh, api: KubernetesApi, keda: KedaClient, desk: ScalerDesk) -> None:
        self.mesh = mesh
        self.api = api
        self._keda = keda
        self._desk = desk

    async def replicas(self) -> int:
        """Replicas that KEDA makes of what it reads now."""
        self.mesh.running.scaling._read_at = float("-inf")
        self._desk._read_at = float("-inf")
        return (await self._keda.poll()).replicas()

    async def scale_in(self) -> dict[str, str | None]:
        await self.mesh.running.scaling.scale_in()
        return dict(await self.mesh.rows("SELECT name, cordoned FROM sessions WHERE closed_at IS NULL"))

    async def cordoned(self, *names: str) -> None:
        async def settled() -> bool:
            return {name for name, by in (await self.scale_in()).items() if by} == set(names)

        await until(settled)

    async def marked(self, *names: str) -> None:
        async def settled() -> bool:
            rows = await self.mesh.rows("SELECT name FROM sessions WHERE closed_at IS NULL AND mark = 'SET'")
            return {name for (name,) in rows} == set(names)

        await until(settled)


@pytest.fixture
async def cluster(start_mesh: StartMesh, tmp_path: Path) -> AsyncIterator[Cluster]:
    mesh = await start_mesh(scale_in_seconds=0.01, scale_settle_seconds=0.1)
    authority = Authority(tmp_path, "cluster")
    (tmp_path / "token").write_text(TOKEN)
    api = KubernetesApi(TOKEN)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(api.serving(*authority.issue("api")))
        settings: dict[str, Any] = {
            "listen": "127.0.0.1:0",
            "auth_secret": SECRET,
            "tasks_address": mesh.running.address,
            "kubernetes_url": api.url,
            "kubernetes_token": tmp_path / "token",
            "kubernetes_ca": authority.file,
            "kubernetes_namespace": "atelier",
            "mark_seconds": 0.05,
            "unmark_seconds": 0.1,
            "shutdown_grace_seconds": 0.2,
        }
        await marker.start(MarkerSettings(**settings), stack)
        channel = MeshChannel(mesh.running.address, lambda: mesh.token("", ("mesh",)))
        stack.push_async_callback(channel.close)
        desk = ScalerDesk(SchedulersDemand(channel).read)
        server = ScalerServer(desk, "127.0.0.1:0", grace_seconds=0.1)
        await server.start()
        stack.push_async_callback(server.stop)
        keda = KedaClient(f"127.0.0.1:{server.port}", TRIGGER)
        stack.push_async_callback(keda.close)
        yield Cluster(mesh, api, keda, desk)


async def test_less_is_reported_only_once_the_mark_is_confirmed_and_the_work_takes_it_back(cluster: Cluster) -> None:
    mesh, api = cluster.mesh, cluster.api
    busy = await mesh.worker(name="busy")
    await mesh.create()
    [lease] = await busy.lease()
    await mesh.worker(name="idle")
    stays = {"cluster_autoscaler.kubernetes.io__safe_to_evict": "false", "karpenter.sh__do_not_disrupt": "true"}
    for name in ("busy", "idle", "stranger"):
        await api.put(name, other="kept", **stays)
    before = api.annotations("idle")
    api.fails = True
    await cluster.cordoned("idle")
    await until(lambda: _announced(mesh))
    assert await cluster.replicas() == 2
    api.fails = False
    await cluster.marked("idle")
    assert await cluster.replicas() == 1
    assert api.annotations("idle")[COST] == LOWERED
    assert set(api.annotations("idle")) == {"other", COST, FORMER}
    assert api.annotations("busy") == api.annotations("stranger") == before
    # The work is back: the worker is kept, freed of its mark, and works.
    await mesh.execute("INSERT INTO work_times VALUES ('NOOP/LOCAL', '', 600, 1, now())")
    for _ in range(5):
        await mesh.create()
    await cluster.cordoned()
    assert await cluster.replicas() >= 2
    await cluster.marked()
    assert api.annotations("idle") == before
    assert {name for name, _ in api.patches} == {"idle"}
    assert lease.job_id


async def _announced(mesh: Mesh) -> bool:
    return await mesh.rows("SELECT count(*) FROM sessions WHERE mark = 'ANNOUNCED'") == [(1,)]


async def test_a_mark_that_comes_late_takes_nobody_out(cluster: Cluster) -> None:
    mesh, api = cluster.mesh, cluster.api
    for name in ("a", "b"):
        await mesh.worker(name=name)
        await api.put(name)
    api.delay = 3.0
    await cluster.cordoned("a", "b")
    await until(lambda: _on_their_way(mesh))
    # While marks are on their way to both, an operator takes one back: it works, and may bear a mark at any time.
    await mesh.running.scaling.uncordon("b")
    assert await cluster.replicas() == 2
    async with asyncio.timeout(60):
        while COST not in api.annotations("b"):
            assert await cluster.replicas() == 2
    api.delay = 0.0
    await until(lambda: _freed(api, "b"))
    await cluster.marked("a")
    assert await cluster.replicas() == 1


async def _on_their_way(mesh: Mesh) -> bool:
    return await mesh.rows("SELECT count(*) FROM sessions WHERE mark = 'ANNOUNCED'") == [(2,)]


async def _freed(api: KubernetesApi, name: str) -> bool:
    return api.annotations(name) == {}


async def test_a_watch_that_cannot_go_on_lists_again_and_pods_that_went_are_forgotten(cluster: Cluster) -> None:
    mesh, api = cluster.mesh, cluster.api
    for number in range(5):  # more than a page
        await api.put(f"w{number}")
    await until(lambda: _listed(api, 1))
    await api.forget()
    await until(lambda: _listed(api, 2))
    await api.remove("w3")
    for name in ("w3", "w4"):
        await mesh.worker(name=name)
    await cluster.cordoned("w3", "w4")
    await cluster.marked("w4")
    # Of one that is gone nothing is known: it is not taken out.
    assert await cluster.replicas() == 1


async def _listed(api: KubernetesApi, times: int) -> bool:
    return api.lists >= times
