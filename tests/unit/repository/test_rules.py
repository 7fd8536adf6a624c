"""The rules for Prometheus name what exists, and each alert says what to do."""

import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # ships no types

from scripts.metrics_page import series_names
from tests.unit.repository.rules import RULES, expressions, names_in, recorded, rules
from tests.unit.repository.sources import ROOT


def _alerts() -> dict[str, dict[str, Any]]:
    return {rule["alert"]: rule for rule in rules("alerts.yml")}


@pytest.mark.parametrize("file", ["recording.yml", "alerts.yml"])
def test_rules_name_metrics_that_exist(file: str) -> None:
    known = series_names() | recorded()
    assert {query for query in expressions(file) if names_in(query) - known} == set()
    assert [query for query in expressions(file) if not names_in(query)] == (
        ["up == 0"] if file == "alerts.yml" else []
    )


def test_metrics_that_no_process_has_are_told_apart() -> None:
    assert names_in('sum by (atelier_x) (rate(atelier_a_total{b="atelier_c"}[5m])) / atelier:d:rate5m') == {
        "atelier_a_total",
        "atelier:d:rate5m",
    }


def test_every_alert_has_a_runbook_a_severity_and_a_dashboard() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = page.partition("\n## Alerts\n")[2].partition("\n## ")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+) \| .{40,} \|$", section, re.MULTILINE))
    assert rows == {name: rule["labels"]["severity"] for name, rule in _alerts().items()}
    runbooks = (ROOT / "docs" / "operations" / "runbooks.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (\w+)$", runbooks, re.MULTILINE)
    assert headings == list(_alerts())
    assert {name: rule["annotations"]["runbook"] for name, rule in _alerts().items()} == {
        name: f"docs/operations/runbooks.md#{name.lower()}" for name in headings
    }
    for name, text in zip(headings, re.split(r"^## \w+$", runbooks, flags=re.MULTILINE)[1:], strict=True):
        assert re.search(r"^1\. ", text, re.MULTILINE), f"{name} does not say what to do first"


def test_every_alert_is_tried_firing_and_silent() -> None:
    tests = yaml.safe_load((RULES / "tests.yml").read_text(encoding="utf-8"))["tests"]
    tried: dict[str, set[bool]] = {}
    for test in tests:
        for one in test.get("alert_rule_test", ()):
            tried.setdefault(one["alertname"], set()).add(bool(one["exp_alerts"]))
    assert tried == {name: {True, False} for name in _alerts()}


def test_the_names_of_flower_are_recorded() -> None:
    assert recorded() >= {
        "flower_events_total",
        "flower_task_runtime_seconds_bucket",
        "flower_task_prefetch_time_seconds",
        "flower_worker_online",
        "flower_worker_number_of_currently_executing_tasks",
    }


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_the_rules_pass_their_own_tests() -> None:
    for arguments in (["check", "rules", "recording.yml", "alerts.yml"], ["test", "rules", "tests.yml"]):
        command = [str(shutil.which("promtool")), *arguments]
        done = subprocess.run(command, cwd=RULES, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
