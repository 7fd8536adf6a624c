"""Generated requests get no server error and no undocumented status or shape."""

import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.e2e.harness import RunningMesh

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.timeout(600)
def test_generated_requests_get_documented_answers(mesh: RunningMesh, tmp_path: Path) -> None:
    schemathesis = Path(sysconfig.get_path("scripts")) / "schemathesis"
    command: list[str | Path] = [
        schemathesis,
        "run",
        f"{mesh.url}/openapi.json",
        "--header",
        f"Authorization: Bearer {mesh.token()}",
    ]
    # Half of the requests are wrong on purpose. The seed makes a failure reproducible.
    command += ["--phases", "fuzzing", "--mode", "all", "--max-examples", "8", "--seed", "20261122"]
    command += ["--checks", CHECKS, "--no-color", "--request-timeout", "30"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
