"""Each part that writes has a small disk of its own, which is filled and freed: refused meanwhile, nothing lost."""

import contextlib
import io
import random
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from PIL import Image

from tests.e2e.harness import ENDED, NOOP_ENVIRONMENT, RunningMesh, noop, post_until_answered, until
from tests.e2e.small_disks import NoSmallDisksError, SmallDisks, filled, small_disks

TENANT = "disk"
_IMAGES = "/api/v1/storage/images"
_TASK = {"steps": 1, "step_ms": 5, "result_bytes": 40_000}


@pytest.fixture(scope="module")
def disks(servers_folder: Path) -> Iterator[SmallDisks]:
    """A folder for a mesh, whose parts lie on file systems of their own."""
    try:
        with small_disks(servers_folder / "full-disk") as disks:
            yield disks
    except NoSmallDisksError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def small(disks: SmallDisks) -> Iterator[RunningMesh]:
    """A mesh on small disks."""
    mesh = RunningMesh(disks.folder, {**NOOP_ENVIRONMENT, "ATELIER_MAX_RETRIES": "3"}, disks)
    try:
        mesh.up()
        yield mesh
    finally:
        mesh.down()


@pytest.fixture
def client(small: RunningMesh) -> Iterator[httpx.Client]:
    with small.http(TENANT, timeout_seconds=50) as client:  # a fresh store tries for 30 s before it refuses
        yield client


def picture(seed: int) -> bytes:
    """A PNG of 120 kB that does not compress."""
    out = io.BytesIO()
    Image.frombytes("RGB", (200, 200), random.Random(seed).randbytes(200 * 200 * 3)).save(out, "PNG")
    return out.getvalue()


def refused(act: Callable[[], httpx.Response], done: Callable[[httpx.Response], None]) -> None:
    """Repeat until it is refused: with a 503 that says when to come again, whatever was accepted before."""

    def once() -> httpx.Response | None:
        answer = act()
        if answer.status_code == 200:
            done(answer)
            return None
        return answer

    answer = until(once, "a full disk refuses", 60, pause_seconds=0)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1


def complete(client: httpx.Client, accepted: list[str]) -> None:
    """All that was accepted is done, with its result in its place, and a new task is as well."""
    new = post_until_answered(client, "/api/v1/tasks/", noop(**_TASK), str(uuid.uuid4()))["id"]

    def ended() -> list[dict[str, Any]] | None:
        try:
            tasks = [client.get(f"/api/v1/tasks/{ident}") for ident in (*accepted, new)]
        except httpx.TransportError:
            return None
        if any(one.status_code in {502, 503, 504} for one in tasks):
            return None
        found = [one.raise_for_status().json() for one in tasks]
        return found if all(one["status"] in ENDED for one in found) else None

    tasks = until(ended, "everything that was accepted has ended", 90)
    assert {one["status"] for one in tasks} == {"COMPLETED"}, [one["errors"] for one in tasks]
    until(lambda: client.get("/health").json()["status"] == "healthy", "all parts are well again", 60)


def create(client: httpx.Client) -> httpx.Response:
    return client.post("/api/v1/tasks/", json=noop(**_TASK))


def test_a_full_database_refuses_and_goes_on(small: RunningMesh, client: httpx.Client) -> None:
    accepted: list[str] = []
    with filled(small.disk("postgres")):
        refused(lambda: create(client), lambda answer: accepted.append(answer.json()["id"]))
    complete(client, accepted)


@pytest.mark.long
def test_a_database_that_cannot_even_write_its_log_comes_back_with_all_it_took(
    small: RunningMesh, client: httpx.Client
) -> None:
    accepted = [create(client).raise_for_status().json()["id"] for _ in range(3)]
    with filled(small.disk("postgres")):
        with contextlib.suppress(psycopg.OperationalError), small.database() as connection:
            # It has segments of its log in reserve; once they are used up, it panics and cannot start again.
            for _ in range(512):
                connection.execute("SELECT pg_logical_emit_message(true, 'fill', repeat('x', 1000000))")
        refused(lambda: create(client), lambda answer: accepted.append(answer.json()["id"]))
        assert client.get("/health").status_code == 503
        until(lambda: small.restarts("postgres") > 0, "PostgreSQL has ended")
    complete(client, accepted)


def test_a_full_store_refuses_and_goes_on(small: RunningMesh, client: httpx.Client) -> None:
    stored: dict[str, bytes] = {}
    accepted = []
    with filled(small.disk("s3")):

        def store() -> httpx.Response:
            data = picture(len(stored))
            return client.post(f"{_IMAGES}/{len(stored)}.png", content=data, headers={"content-type": "image/png"})

        refused(store, lambda _: stored.update({f"{len(stored)}.png": picture(len(stored))}))
        accepted = [create(client).raise_for_status().json()["id"] for _ in range(6)]
        until(lambda: any(small.attempts(client, ident) for ident in accepted), "an attempt could not store its result")
    complete(client, accepted)
    for name, data in stored.items():
        assert client.get(f"{_IMAGES}/{name}").content == data


def test_a_full_nats_delays_events_alone(small: RunningMesh, client: httpx.Client) -> None:
    with filled(small.disk("nats")):
        accepted = [create(client).raise_for_status().json()["id"] for _ in range(20)]
        until(
            lambda: all(client.get(f"/api/v1/tasks/{ident}").json()["status"] == "COMPLETED" for ident in accepted),
            "tasks complete without events",
        )
    complete(client, accepted)

    def published() -> bool:
        with small.database() as connection:
            return connection.execute("SELECT count(*) FROM tasks.outbox").fetchone() == (0,)

    until(published, "the events that waited are published")


def test_a_full_disk_of_the_worker_loses_no_task(small: RunningMesh, client: httpx.Client) -> None:
    with filled(small.disk("worker")):
        accepted = [create(client).raise_for_status().json()["id"] for _ in range(6)]
    complete(client, accepted)


def test_logs_that_cannot_be_written_hold_nobody_up(small: RunningMesh, client: httpx.Client) -> None:
    with filled(small.disk("logs")):
        complete(client, [create(client).raise_for_status().json()["id"] for _ in range(6)])
    size = (small.disk("logs") / "gateway.log").stat().st_size
    complete(client, [])
    assert (small.disk("logs") / "gateway.log").stat().st_size > size, "the log goes on"
