import subprocess
import sys

from scripts.metrics_page import declared
from tests.unit.repository.sources import ROOT


def test_the_page_of_metrics_is_current() -> None:
    script = [sys.executable, "scripts/metrics_page.py", "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_names_have_the_prefix_and_a_unit_that_is_a_base_unit() -> None:
    names = [one.name for one in declared()]
    assert [name for name in names if not name.startswith("atelier_")] == []
    assert [name for name in names if "_ms" in name or "millis" in name or "_minutes" in name] == []


def test_no_metric_has_a_label_that_nobody_bounds() -> None:
    unbounded = {"job_id", "task_id", "trace_id", "session", "url", "user", "path"}
    assert {one.name for one in declared() if unbounded & set(one.labels)} == set()
    assert {one.name for one in declared() if "tenant" in one.labels} == {"atelier_worker_tenant_device_seconds_total"}
