"""Write `docs/metrics.md`, the list of every metric, from the declarations in the sources.

`--check` writes nothing and fails if the page is not current. Nothing is imported: the declarations are read as they
stand, so a metric needs a literal name, a literal meaning and literal labels.
"""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "metrics.md"
_KINDS = ("counter", "gauge", "histogram")
_HEAD = """# Metrics

Every process serves these figures at `/metrics` on `ATELIER_METRICS_PORT`, in Prometheus' text format and, for scrapers
that ask for it, in OpenMetrics, where the histograms of queue wait, runs, attempts, requests and providers bear
exemplars: the trace of an observation, `trace_id`. A process shows the metrics of the code that it has loaded, and
`process_*` and `python_*` of the Prometheus client. [monitoring.md](monitoring.md#what-to-watch) says what to watch.
`scripts/metrics_page.py` writes this page.

- A counter's name ends with `_total`. A histogram has `_bucket`, `_sum` and `_count`.
- Every label has few values. Tenants are bounded: a process gives the first hundred that it meets a series of their
  own, all others are `(others)`. Exact figures by tenant are rows, not metrics.
"""


@dataclass(frozen=True, slots=True)
class DeclaredMetric:
    """A metric as the sources declare it.

    Attributes:
        name: Full name, as Prometheus knows it.
        kind: `counter`, `gauge` or `histogram`.
        labels: Names of its labels.
        meaning: What it shows.
        module: File that declares it.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    meaning: str
    module: str

    @property
    def shown_by(self) -> str:
        """Which processes show it."""
        parts = self.module.split("/")
        if parts[0] != "services":
            return "workers" if parts[:2] == ["meshkit", "worker"] else "each that uses it"
        if parts[1] == "inference":
            return "evaluation" if parts[2] == "evaluation" else "worker"
        return "trainer" if parts[:3] == ["services", "training", "trainer"] else parts[1]


@cache
def declared() -> tuple[DeclaredMetric, ...]:
    """Return every metric, by name.

    Raises:
        ValueError: Two declarations of one name differ.
    """
    found: dict[str, DeclaredMetric] = {}
    for folder in ("meshkit", "modelkit", "services"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for metric in _declared_in(path):
                known = found.setdefault(metric.name, metric)
                if (known.kind, known.labels, known.meaning) != (metric.kind, metric.labels, metric.meaning):
                    raise ValueError(f"{metric.name} is declared differently in {known.module} and {metric.module}")
    return tuple(found[name] for name in sorted(found))


def series_names() -> set[str]:
    """Return the names that queries may use."""
    names = set()
    for metric in declared():
        parts = ("_bucket", "_sum", "_count") if metric.kind == "histogram" else ("",)
        names |= {f"{metric.name}{part}" for part in parts}
    return names


def render() -> str:
    """Return the page."""
    rows = [_HEAD, "| metric | kind | labels | shown by | shows |", "|---|---|---|---|---|"]
    for one in declared():
        labels = ", ".join(f"`{label}`" for label in one.labels)
        rows.append(f"| `{one.name}` | {one.kind} | {labels} | {one.shown_by} | {one.meaning.rstrip('.')} |")
    return "\n".join(rows) + "\n"


def _declared_in(path: Path) -> Iterator[DeclaredMetric]:
    text = path.read_text(encoding="utf-8")
    if "metrics" not in text:
        return
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Call) or (kind := _kind(node.func)) is None or not node.args:
            continue
        given = dict(zip(("name", "documentation", "labels"), node.args, strict=False))
        given |= {word.arg: word.value for word in node.keywords if word.arg is not None}
        values = {key: ast.literal_eval(given[key]) for key in ("name", "documentation", "labels") if key in given}
        name = f"atelier_{values['name']}" + ("_total" if kind == "counter" else "")
        module = path.relative_to(ROOT).as_posix()
        yield DeclaredMetric(name, kind, tuple(values.get("labels", ())), values["documentation"], module)


def _kind(function: ast.expr) -> str | None:
    if isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name) and function.value.id == "metrics":
        return function.attr if function.attr in _KINDS else None
    return function.id if isinstance(function, ast.Name) and function.id in _KINDS else None


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        PAGE.write_text(render(), encoding="utf-8")
        return 0
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == render():
        return 0
    sys.stderr.write("docs/metrics.md is not current: run scripts/metrics_page.py\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
