"""The dashboards are current, small, and ask for what exists."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # ships no types

from scripts.dashboard_parts import PanelSpec
from scripts.dashboard_tables import DASHBOARDS, panels, runnable
from scripts.dashboards import FOLDER
from scripts.metrics_page import declared, series_names
from tests.unit.repository.rules import expressions, names_in, recorded, rules
from tests.unit.repository.sources import ROOT

# What Prometheus itself and its client add to every target.
_TARGET = frozenset({"instance", "job"})
_BY = re.compile(r"by \(([^)]*)\)")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")
_PARTS = re.compile(r"_(?:bucket|sum|count)$")


def _built() -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))}


def test_the_files_are_current() -> None:
    script = [sys.executable, "-m", "scripts.dashboards", "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_each_dashboard_has_a_fixed_identity_and_few_panels() -> None:
    built = _built()
    assert sorted(built) == sorted(spec.uid for spec in DASHBOARDS)
    for name, one in built.items():
        assert (one["uid"], one["schemaVersion"] >= 36, "elements" in one) == (name, True, False)
        shown = [panel for panel in one["panels"] if panel["type"] != "row"]
        assert 0 < len(shown) <= 20
        assert len({panel["id"] for panel in one["panels"]}) == len(one["panels"])
        assert {panel["datasource"]["uid"] for panel in shown} == {"prometheus"}
        assert all(panel["targets"] for panel in shown)


def test_panels_ask_for_metrics_that_exist() -> None:
    known = series_names() | recorded()
    wrong = {panel.title: names_in(query) - known for panel in panels() for query, _ in panel.queries}
    assert {title: names for title, names in wrong.items() if names} == {}


def test_every_metric_is_on_a_panel_or_in_a_rule() -> None:
    queries = [query for panel in panels() for query, _ in panel.queries]
    queries += [*expressions("recording.yml"), *expressions("alerts.yml")]
    asked = {name for query in queries for name in names_in(query)}
    asked |= {_PARTS.sub("", name) for name in asked}
    assert {metric.name for metric in declared()} - asked == set()


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel.title)
def test_a_panels_legend_names_labels_that_its_query_keeps(panel: PanelSpec) -> None:
    labels = {metric.name: set(metric.labels) for metric in declared()}
    for query, legend in panel.queries:
        wanted = set(_LEGEND.findall(legend))
        grouped = [set(re.split(r",\s*", group)) for group in _BY.findall(query)]
        for name in names_in(query):
            own = labels.get(_PARTS.sub("", name)) or labels.get(name)
            for group in grouped:
                if own is not None:
                    assert group <= own | _TARGET | {"le"}, (query, name)
            if not grouped and own is not None:
                assert wanted <= own | _TARGET, (query, name)
        if grouped:
            assert wanted <= set.intersection(*grouped), query


def test_every_alert_leads_to_a_dashboard() -> None:
    named = {rule["annotations"]["dashboard"] for rule in rules("alerts.yml")}
    assert named <= {spec.uid for spec in DASHBOARDS}


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed (Debian: prometheus)")
def test_prometheus_can_read_every_query(tmp_path: Path) -> None:
    queries = [runnable(query) for panel in panels() for query, _ in panel.queries]
    read = [{"record": f"read:query:{number}", "expr": query} for number, query in enumerate(queries)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": read}]}), encoding="utf-8")
    command = [str(shutil.which("promtool")), "check", "rules", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(queries)} rules found" in done.stdout
