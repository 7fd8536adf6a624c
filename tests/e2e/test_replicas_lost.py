"""A replica of each service stands still or is cut off from PostgreSQL: the others go on, and nothing is lost.

The short form does it for some seconds, the long one for a minute. What is held is the order of events: callers of the
other replicas get their answers, and their work ends, before what was lost comes back.
"""

import contextlib
import os
import signal
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psutil
import pytest

from atelier_cli.embedded.postgres import PostgresServer
from meshkit.topology import GATEWAY, INFERENCE, MONITORING, TASKS, TRAINING, WORKFLOWS
from tests.conftest import NatsControl, S3Store
from tests.e2e.callers import Load, goes_on, order_faults, workflow
from tests.e2e.harness import post_until_answered, until
from tests.e2e.ledger import count, wait_settled
from tests.e2e.replicas import Fleet, backends, fleets
from tests.wires import CutWire, wired

pytestmark = pytest.mark.timeout(600)

COUNTS = {TASKS: 2, WORKFLOWS: 2, TRAINING: 1, MONITORING: 2, GATEWAY: 2, INFERENCE: 2}
# Of those services that have another replica; the gateway's callers are sent to the other by who balances them.
LOST = ("tasks-1", "workflows-1", "monitoring-1", "gateway-1")
CUT = ("tasks-1", "workflows-1", "monitoring-1")


@dataclass(frozen=True, slots=True)
class Wired:
    """A fleet of which some replicas reach PostgreSQL by a wire."""

    fleet: Fleet
    wire: CutWire


@pytest.fixture(scope="module")
def mesh(servers_folder: Path, postgres_server: PostgresServer, postgres_dsn: str, s3: S3Store) -> Iterator[Wired]:
    nats = NatsControl(servers_folder / "nats-of-replicas")
    with contextlib.ExitStack() as stack:
        stack.callback(nats.stop)
        nats.start()
        dsn = urlsplit(postgres_dsn)
        wire = stack.enter_context(wired(str(dsn.hostname), int(dsn.port or 0)))
        by_wire = urlunsplit(dsn._replace(netloc=f"{dsn.username}:{dsn.password}@{wire.address}"))
        start = stack.enter_context(fleets(servers_folder))
        own = {name: {"ATELIER_DATABASE_URL": by_wire} for name in CUT}
        fleet = start(backends(postgres_dsn, nats.url, s3, s3.bucket()), counts=COUNTS, own=own)
        yield Wired(fleet, wire)


@pytest.fixture(params=[pytest.param(0.0, id="shortly"), pytest.param(60.0, id="for-a-minute", marks=pytest.mark.long)])
def seconds(request: pytest.FixtureRequest) -> float:
    """How long a replica is lost, if what is asserted does not take longer."""
    return float(request.param)


def test_replicas_that_stand_still_hold_up_nobody(mesh: Wired, seconds: float) -> None:
    fleet = mesh.fleet
    stopped = [psutil.Process(fleet.pid(name)) for name in LOST]
    load = Load(fleet, tenants(), pause_seconds=0.2, gateways=[fleet.gateways[0]])
    with load.running():
        goes_on(load, 8)
        began = time.monotonic()
        for each in stopped:
            os.kill(each.pid, signal.SIGSTOP)
        try:
            others_go_on(fleet, load, began)
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            goes_on(load, 2)
            assert {each.status() for each in stopped} == {psutil.STATUS_STOPPED}
        finally:
            for each in stopped:
                os.kill(each.pid, signal.SIGCONT)
        goes_on(load, 4)
    nothing_lost(fleet, load)


def test_replicas_that_are_cut_off_from_postgresql_hold_up_nobody(mesh: Wired, seconds: float) -> None:
    fleet = mesh.fleet
    load = Load(fleet, tenants(), pause_seconds=0.2)
    with load.running():
        goes_on(load, 8)
        began = time.monotonic()
        mesh.wire.cut()
        try:
            others_go_on(fleet, load, began)
            time.sleep(max(0.0, began + seconds - time.monotonic()))
            goes_on(load, 2)
        finally:
            mesh.wire.mend()
        until(lambda: all(fleet.replicas[name].ready() for name in CUT), "those that were cut off take calls again")
        goes_on(load, 4)
    nothing_lost(fleet, load)


def tenants() -> list[str]:
    """Three callers that nobody has promised anything yet."""
    return [f"{name}-{uuid.uuid4().hex[:8]}" for name in ("ada", "bea", "cleo")]


def others_go_on(fleet: Fleet, load: Load, began: float) -> None:
    """Wait until work that came since has ended, every caller has been answered, and monitoring answers."""
    tenant = load.tenants[0]
    with fleet.http(tenant, timeout_seconds=40) as client:
        flow = post_until_answered(client, "/api/v1/workflows/", workflow(), f"{tenant}-while-lost")["id"]
        load.made[tenant].workflows.append(flow)
        read = f"/api/v1/workflows/{flow}"
        until(lambda: client.get(read).json().get("status") == "COMPLETED", "a workflow that came since has ended", 60)
        ended = time.monotonic()
        goes_on(load, 4)
        answered = time.monotonic()
        until(lambda: client.get("/api/system/supervisor").status_code == 200, "monitoring answers", 60)
    sys.stdout.write(
        f"a workflow that came since ended after {ended - began:.1f} s, every caller was answered four times after "
        f"{answered - began:.1f} s, monitoring by {time.monotonic() - began:.1f} s\n"
    )


def nothing_lost(fleet: Fleet, load: Load) -> None:
    """Hold what callers saw, and what there is, to what was promised."""
    sys.stdout.write(f"{load.tally.line}\n")
    assert load.tally.failures == []
    assert set(load.tally.retries) <= {"503"}
    wait_settled(fleet, 120)
    faults = count(fleet, load.made)
    assert faults.clean, faults.worst
    assert order_faults(fleet, load.made) == []
