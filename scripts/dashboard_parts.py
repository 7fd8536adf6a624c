"""What dashboards are made of: panels, and the queries that many of them ask."""

from __future__ import annotations

from dataclasses import dataclass

WIDE, HALF, THIRD, SIXTH = 24, 12, 8, 4


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """A panel.

    Attributes:
        title: What it shows.
        queries: PromQL and the legend of its series.
        unit: Grafana's name of the unit.
        width: Of 24.
        bad_above: A single figure is red above it; None draws a graph.
        about: What to read from it.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = HALF
    bad_above: float | None = None
    about: str = ""


@dataclass(frozen=True, slots=True)
class DashboardSpec:
    """A dashboard.

    Attributes:
        uid: Its fixed identifier, and the name of its file.
        title: Its title.
        rows: Titles of rows, each with its panels.
    """

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[PanelSpec, ...]], ...]


def rate(metric: str, by: str = "", where: str = "") -> str:
    """Return the sum of rates."""
    inner = f"rate({metric}{where}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def quantile(metric: str, by: str = "", share: float = 0.95) -> str:
    """Return a quantile of a histogram."""
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({share}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


def mean(metric: str, by: str) -> str:
    """Return the mean of a histogram's observations."""
    return f"{rate(f'{metric}_sum', by)} / {rate(f'{metric}_count', by)}"


def graph(title: str, query: str, legend: str, unit: str = "short", about: str = "") -> PanelSpec:
    """Return a panel that draws one query."""
    return PanelSpec(title, ((query, legend),), unit, about=about)


def figure(title: str, query: str, unit: str, bad_above: float, about: str = "") -> PanelSpec:
    """Return a panel that shows one number, red above a bound."""
    return PanelSpec(title, ((query, ""),), unit, SIXTH, bad_above, about)
