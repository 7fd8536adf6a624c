"""A mesh with replicas of every service is upgraded and restarted, and its callers notice nothing."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from tests.conftest import NatsControl, S3Store
from tests.e2e.callers import Load, goes_on, order_faults
from tests.e2e.harness import until
from tests.e2e.ledger import count, wait_settled
from tests.e2e.replicas import MANY, PAIRS, SETTLE_SECONDS, Fleet, Restart, Started, backends, fleets, sources
from tests.releases import unpack_last_release

TENANTS = ("ada", "bea", "cleo", "dora")
# What a caller may have to repeat while processes are replaced.
DOCUMENTED = {"refused", "503"}


@pytest.fixture
def start_fleet(servers_folder: Path) -> Iterator[Started]:
    with fleets(servers_folder) as start:
        yield start


@pytest.fixture
def joined(fresh_postgres_dsn: str, nats_server: NatsControl, s3: S3Store) -> dict[str, str]:
    return backends(fresh_postgres_dsn, nats_server.url, s3, s3.bucket())


@pytest.fixture
def release() -> Iterator[Path]:
    """The sources of the version before."""
    with tempfile.TemporaryDirectory(prefix="atelier-release-") as folder:
        yield unpack_last_release(Path(folder))


def test_the_version_before_runs_from_its_own_sources(release: Path) -> None:
    asked = "import atelier, meshkit, services; print(*(one.__path__[0] for one in (atelier, meshkit, services)))"
    done = subprocess.run(
        [sys.executable, "-c", asked],
        env={**os.environ, **sources(release)},
        cwd="/",
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    assert all(Path(each).is_relative_to(release) for each in done.stdout.split())


@pytest.mark.timeout(600)
def test_an_upgrade_from_the_last_release_and_a_step_back_cost_callers_nothing(
    start_fleet: Started, joined: dict[str, str], release: Path
) -> None:
    fleet = start_fleet(joined, counts=PAIRS, source=release)
    load = Load(fleet, TENANTS, pause_seconds=0.3)
    with load.running():
        goes_on(load, 4)
        fleet.migrate()
        replace(fleet, load, [fleet.wave(0)], None)
        replace(fleet, load, [["tasks-0", "workflows-0", "gateway-0"]], release)
        replace(fleet, load, [fleet.wave(1)], None)
    nothing_lost(fleet, load, set_back=True)


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_each_process_of_many_is_upgraded_in_turn_and_set_back(
    start_fleet: Started, joined: dict[str, str], release: Path
) -> None:
    fleet = start_fleet(joined, counts=MANY, source=release)
    load = Load(fleet, TENANTS, pause_seconds=0.4)
    each = [[name] for name in fleet.replicas]
    with load.running():
        goes_on(load)
        fleet.migrate()
        upgraded = replace(fleet, load, each, None)
        back = replace(fleet, load, each, release)
    # The version before does not add up what is counted: one replica of the new one has to.
    fleet.restart(["tasks-0", "workflows-0"], None)
    report(load, upgraded, back)
    nothing_lost(fleet, load, set_back=True)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_each_process_of_many_is_restarted_in_turn(start_fleet: Started, joined: dict[str, str]) -> None:
    fleet = start_fleet(joined, counts=MANY)
    load = Load(fleet, TENANTS, pause_seconds=0.4)
    with load.running():
        goes_on(load)
        done = replace(fleet, load, [[name] for name in fleet.replicas], None)
    report(load, done)
    nothing_lost(fleet, load)


def replace(fleet: Fleet, load: Load, waves: Sequence[Sequence[str]], source: Path | None) -> list[Restart]:
    """Restart replicas under load, wave after wave."""
    done = []
    for names in waves:
        done += fleet.restart(names, source)
        # Channels come back to what they could not reach within two seconds; a rollout waits that long as well.
        time.sleep(SETTLE_SECONDS)
        goes_on(load, 2)
    return done


def nothing_lost(fleet: Fleet, load: Load, *, set_back: bool = False) -> None:
    """Hold what callers saw, and what there is, to what was promised.

    Args:
        fleet: The mesh.
        load: Its callers.
        set_back: Whether some replicas run the version before, which counts what the new one has added up.
    """
    assert load.tally.failures == []
    assert set(load.tally.retries) <= DOCUMENTED
    wait_settled(fleet, 90)
    if set_back:
        until(lambda: added_up(fleet), "what is counted is added up", 60)
    faults = count(fleet, load.made)
    assert faults.clean, faults.worst
    assert order_faults(fleet, load.made) == []
    assert {code for each in fleet.ends.values() for code in each} <= {0}, fleet.ends


def added_up(fleet: Fleet) -> bool:
    """Whether counters hold all that was noted."""
    with fleet.database() as connection:
        row = connection.execute(
            "SELECT (SELECT count(*) FROM tasks.task_changes) + (SELECT count(*) FROM workflows.workflow_changes)"
        ).fetchone()
    return row == (0,)


def report(load: Load, *rounds: Sequence[Restart]) -> None:
    """Write figures, for `pytest -rP`."""
    lines = [
        f"{one.name}: ended after {one.stopped:.1f} s, served {one.started:.1f} s later"
        for part in rounds
        for one in part
    ]
    lines.append(load.tally.line)
    sys.stdout.write("\n".join(lines) + "\n")
