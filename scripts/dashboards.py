"""Write the dashboards of `ops/grafana/` in Grafana's schema v1, which file provisioning takes.

Run it as `python -m scripts.dashboards`. `--check` writes nothing and fails if a file is not current. What they show
stands in `scripts/dashboard_tables.py`.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import count
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import BigValueColorMode, LegendDisplayMode, LegendPlacement
from grafana_foundation_sdk.models.dashboard import DashboardCursorSync, DashboardLinkType, DataSourceRef, Threshold
from grafana_foundation_sdk.models.dashboard import ThresholdsMode as Mode

from scripts.dashboard_parts import DashboardSpec, PanelSpec
from scripts.dashboard_tables import DASHBOARDS

FOLDER = Path(__file__).resolve().parents[1] / "ops" / "grafana"
# Name the data source of an installation so, or replace this on import.
DATASOURCE = "prometheus"


def render(spec: DashboardSpec) -> str:
    """Return a dashboard as JSON."""
    built = (
        dashboard.Dashboard(spec.title)
        .uid(spec.uid)
        .tags(["atelier"])
        .editable()
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .link(dashboard.DashboardLink("Atelier").type(DashboardLinkType.DASHBOARDS).tags(["atelier"]).as_dropdown(True))  # noqa: FBT003 -- the library's signature
    )
    numbers = count(1)
    for title, panels in spec.rows:
        built = built.with_row(dashboard.Row(title).id(next(numbers)))
        for panel in panels:
            built = built.with_panel(_panel(panel).id(next(numbers)))
    return json.dumps(built.build(), cls=JSONEncoder, indent=2, sort_keys=True) + "\n"


def _panel(spec: PanelSpec) -> Any:
    source = DataSourceRef(type_val="prometheus", uid=DATASOURCE)
    panel: Any
    if spec.bad_above is None:
        legend = (
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)  # noqa: FBT003 -- the library's signature
        )
        panel = timeseries.Panel().legend(legend).min(0).fill_opacity(10).height(8)
    else:
        # Green up to the bound, red above it: a step begins at its value.
        steps = [Threshold(value=None, color="green"), Threshold(value=spec.bad_above * 1.000001 + 1e-9, color="red")]
        levels = dashboard.ThresholdsConfig().mode(Mode.ABSOLUTE).steps(steps)
        panel = stat.Panel().thresholds(levels).color_mode(BigValueColorMode.BACKGROUND).height(4)
    panel = panel.title(spec.title).description(spec.about).unit(spec.unit).span(spec.width).datasource(source)
    for number, (query, legend_format) in enumerate(spec.queries):
        target = prometheus.Dataquery().expr(query).legend_format(legend_format).ref_id(chr(ord("A") + number))
        target = target.exemplar(True) if spec.bad_above is None else target.instant()  # noqa: FBT003 -- the library's signature
        panel = panel.with_target(target.datasource(source))
    return panel


def main() -> int:
    """Write or check the files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    files = {FOLDER / f"{spec.uid}.json": render(spec) for spec in DASHBOARDS}
    strange = set(FOLDER.glob("*.json")) - set(files)
    if not check:
        FOLDER.mkdir(parents=True, exist_ok=True)
        for file in strange:
            file.unlink()
        for file, text in files.items():
            file.write_text(text, encoding="utf-8")
        return 0
    old = [file for file, text in files.items() if not file.exists() or file.read_text(encoding="utf-8") != text]
    for file in sorted({*old, *strange}):
        sys.stderr.write(f"{file.name} is not current: run make dashboards\n")
    return 1 if old or strange else 0


if __name__ == "__main__":
    sys.exit(main())
