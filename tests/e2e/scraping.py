"""A Prometheus that reads a mesh every second, by the project's rules with shorter waits."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from atelier_cli.embedded.process import RunningServer, free_ports
from atelier_cli.embedded.prometheus import RULES, MetricsPage, PrometheusServer, chosen_prometheus
from tests.e2e.harness import RunningMesh


@contextmanager
def scraping(mesh: RunningMesh, folder: Path, waits: Mapping[str, str] | None = None) -> Iterator[httpx.Client]:
    """Run it, and yield a client of its API.

    Args:
        mesh: Whose services it reads.
        folder: Where its figures lie.
        waits: What stands in the rules in place of what; intervals are a second in any case.
    """
    pages = [MetricsPage(each.name, urlsplit(each.metrics).netloc) for each in mesh.record.processes if each.metrics]
    rules = [folder / path.name for path in RULES]
    for source, written in zip(RULES, rules, strict=True):
        text = source.read_text(encoding="utf-8")
        for usual, shorter in {"interval: 30s": "interval: 1s", **(waits or {})}.items():
            text = text.replace(usual, shorter)
        written.write_text(text, encoding="utf-8")
    program, log = chosen_prometheus(None, asked=True), folder / "prometheus.log"
    server = PrometheusServer(folder / "data", free_ports(1)[0], program, pages, log, rules=rules, seconds=1)
    running = RunningServer(server)
    try:
        running.start()
        with httpx.Client(base_url=f"{server.url}/api/v1", timeout=30) as client:
            yield client
    finally:
        running.stop()
