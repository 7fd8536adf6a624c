"""Generated and hostile requests get no server error, no undocumented answer, no traceback, and leave no memory behind.

`make fuzz` runs the long form: 100,000 hostile requests, after the generated ones, to one mesh. It prints what was sent
and how it was answered. FUZZ_SEED draws others.
"""

import contextlib
import os
import subprocess
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.e2e import hostile
from tests.e2e.harness import RunningMesh

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
SEED = int(os.environ.get("FUZZ_SEED", "20261122"))
TENANT = "fuzz"


@pytest.fixture
def target(mesh: RunningMesh) -> Iterator[hostile.Target]:
    with contextlib.ExitStack() as stack:
        client = stack.enter_context(mesh.http(TENANT, timeout_seconds=60))
        ports = mesh.record.ports
        channels = {
            role: stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{ports[role]}"))
            for role in ("tasks", "workflows")
        }
        yield hostile.Target(mesh, client, channels, mesh.token(TENANT))


@pytest.mark.parametrize(
    "examples",
    [
        pytest.param(5, marks=pytest.mark.timeout(600)),
        pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
def test_generated_requests_get_documented_answers(mesh: RunningMesh, tmp_path: Path, examples: int) -> None:
    schemathesis = Path(sysconfig.get_path("scripts")) / "schemathesis"
    command: list[str | Path] = [
        schemathesis,
        "run",
        f"{mesh.url}/openapi.json",
        "--header",
        f"Authorization: Bearer {mesh.token()}",
    ]
    # Half of the requests are wrong on purpose. The seed makes a failure reproducible.
    command += ["--phases", "fuzzing", "--mode", "all", "--max-examples", str(examples), "--seed", str(SEED)]
    # A stream that never ends is never whole, and without a Prometheus its targets are a 503 by contract.
    command += ["--exclude-path", "/api/v1/events", "--exclude-path", "/api/system/monitoring/targets"]
    command += ["--checks", CHECKS, "--no-color", "--request-timeout", "30"]
    watch = hostile.Watch.begin(mesh)
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert watch.tracebacks() == []
    print(done.stdout[-1500:])


@pytest.mark.parametrize(
    "requests",
    [
        pytest.param(1_500, marks=pytest.mark.timeout(600)),
        pytest.param(100_000, marks=[pytest.mark.long, pytest.mark.timeout(7200)]),
    ],
)
def test_hostile_requests_are_refused_and_leave_nothing(
    mesh: RunningMesh, target: hostile.Target, requests: int
) -> None:
    watch = hostile.Watch.begin(mesh)
    # The first fill pools and caches, which stay.
    warm = requests // 3
    faults = hostile.fire(target, SEED, range(warm))
    before = watch.memory()
    faults += hostile.fire(target, SEED, range(warm, requests))
    assert not faults, "\n".join([f"{len(faults)} faults", *faults[:20]])
    assert watch.tracebacks() == []
    assert not hostile.memory_came_back(watch, before)
    answers = ", ".join(f"{answer} x{count:,}" for answer, count in target.answers.most_common())
    print(f"{requests:,} requests: {answers}")
    assert target.answers["422"] > requests / 10, f"the grammar reaches what it is meant for: {target.answers}"
