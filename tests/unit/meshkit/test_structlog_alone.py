"""What a process loads with its logs."""

import subprocess
import sys

import pytest

CAPTURE = "services.monitoring.capture.composition"


def ran(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize("module", ["meshkit.logging", CAPTURE])
def test_no_process_of_the_mesh_loads_what_draws_in_terminals(module: str) -> None:
    assert ran(f"import sys, {module}; print(sorted({{'rich', 'pygments'}} & sys.modules.keys()))") == "[]"


def test_who_draws_in_terminals_still_can() -> None:
    assert ran("import meshkit.logging, rich.console; print(rich.console.Console.__name__)") == "Console"
    assert ran("import rich, meshkit.logging, structlog, sys; print(sys.modules['rich'] is rich)") == "True"


def test_capture_loads_nothing_that_it_seldom_needs() -> None:
    heavy = {"PIL", "alembic", "httpx", "minio", "numpy", "opentelemetry", "sqlalchemy", "starlette", "yaml"}
    assert ran(f"import sys, {CAPTURE}; print(sorted({heavy} & sys.modules.keys()))") == "[]"
