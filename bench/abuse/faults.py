"""Rows about the machine: its ports, its disks, stops of a service, copies."""

from __future__ import annotations

import json
import signal
import tempfile
import time
import uuid
from contextlib import ExitStack
from pathlib import Path

import httpx

from bench.abuse.measuring import repeating
from bench.abuse.rows import GREEDY, Abuse, row
from tests.e2e.harness import until
from tests.e2e.open_ports import got_through, listeners, try_all
from tests.e2e.small_disks import filled
from tests.e2e.test_full_disk import picture

_FULL_SECONDS = 8.0


@row("another user of the machine tries every port, no token")
def open_ports(abuse: Abuse) -> None:
    """Ask each port for a tenant's picture, by HTTP, TLS, gRPC and what the store's parts speak."""
    content = picture(0)
    headers = abuse.headers | {"Content-Type": "image/png"}
    path = "/api/v1/storage/images/secret.png"
    httpx.post(f"{abuse.url}{path}", content=content, headers=headers, timeout=60).raise_for_status()
    [stored] = [one for one in abuse.mesh.objects(GREEDY) if one.endswith("secret.png")]
    opened, sockets = listeners(abuse.mesh)
    answers = try_all(abuse.mesh, f"atelier/tenants/{GREEDY}/{stored}", {port for _, port in opened}, sockets)
    through = got_through(abuse.mesh, answers)
    abuse.found.append(f"{len(answers)} attempts at {len(opened)} ports, {len(through)} got through")
    abuse.wrong += [f"{door} answered {attempt}" for door, attempt, _ in through]
    if httpx.get(f"{abuse.url}{path}", headers=headers, timeout=60).content != content:
        abuse.wrong.append("the picture is another")


@row("SIGTERM of tasks with 20 event streams open", longest=15.0)
def stop_with_streams(abuse: Abuse) -> None:
    """Stop tasks while streams follow a task that does not end; the mesh starts it again."""
    ident = abuse.create({"task_type": "GENERATION", "prompt": "a red dress"})
    with ExitStack() as stack:
        client = stack.enter_context(httpx.Client(base_url=abuse.url, headers=abuse.headers, timeout=60))
        for _ in range(20):
            stream = stack.enter_context(client.stream("GET", f"/api/v1/tasks/{ident}/events"))
            abuse.answers[str(stream.status_code)] += 1
        began = time.monotonic()
        before = abuse.mesh.restarts("tasks")
        abuse.mesh.kill("tasks", signal.SIGTERM)
        until(lambda: abuse.mesh.restarts("tasks") > before, "tasks has ended", 60, pause_seconds=0.02)
        abuse.found.append(f"its process ended after {time.monotonic() - began:.1f} s")
        abuse.mesh.wait_restarted("tasks", before)
        time.sleep(3)
    abuse.found.append(f"{abuse.other.refused} calls of the other tenant were refused meanwhile")


@row("a backup while tasks are created", longest=10.0)
def backup(abuse: Abuse) -> None:
    """Copy the mesh under load."""

    def create() -> None:
        abuse.create({"task_type": "NOOP", "steps": 0, "result_bytes": 20_000})

    with tempfile.TemporaryDirectory(prefix="atelier-copy-") as folder, repeating(create, 0.02):
        began = time.monotonic()
        done = abuse.mesh.cli("backup", str(Path(folder) / "copy"))
        abuse.found.append(f"backup took {time.monotonic() - began:.1f} s")
    if done.returncode:
        abuse.wrong.append(f"backup failed: {done.stderr.strip()[-200:]}")


@row("the store's disk is full for 8 s", small_disks=True)
def full_store(abuse: Abuse) -> None:
    """Upload while there is no room; tasks without a result go on as before."""
    content = picture(0)
    headers = abuse.headers | {"Content-Type": "image/png"}
    with filled(abuse.mesh.disk("s3")):
        until_at = time.monotonic() + _FULL_SECONDS
        while time.monotonic() < until_at:
            path = f"{abuse.url}/api/v1/storage/images/{uuid.uuid4()}.png"
            _note_refusal(abuse, abuse.note(lambda: httpx.post(path, content=content, headers=headers, timeout=60)))  # noqa: B023 -- called at once
    until(lambda: _is_well(abuse), "all parts are well again")


@row("the database's disk is full for 8 s", longest=_FULL_SECONDS + 15.0, small_disks=True)
def full_database(abuse: Abuse) -> None:
    """Create while there is no room."""
    body = json.dumps({"task_type": "NOOP", "origin_instance": "bench", "steps": 0})
    url = f"{abuse.url}/api/v1/tasks/"
    accepted = []
    with filled(abuse.mesh.disk("postgres")):
        until_at = time.monotonic() + _FULL_SECONDS
        while time.monotonic() < until_at:
            answer = abuse.note(lambda: httpx.post(url, content=body, headers=abuse.headers, timeout=60))
            _note_refusal(abuse, answer)
            if answer is not None and answer.status_code == 200:
                accepted.append(answer.json()["id"])
    until(lambda: _is_well(abuse), "all parts are well again")
    with httpx.Client(base_url=url, headers=abuse.headers, timeout=60) as client:
        until(
            lambda: all(client.get(ident).json()["status"] == "COMPLETED" for ident in accepted),
            "what was accepted is done",
        )


def _note_refusal(abuse: Abuse, answer: httpx.Response | None) -> None:
    if answer is None:
        abuse.wrong.append("no answer within a minute")
        return
    if answer.status_code < 500:
        return
    if answer.status_code != 503 or "retry-after" not in answer.headers:
        abuse.wrong.append(f"a {answer.status_code} that does not say when to come again")


def _is_well(abuse: Abuse) -> bool:
    return bool(httpx.get(f"{abuse.url}/health", timeout=10).json()["status"] == "healthy")
