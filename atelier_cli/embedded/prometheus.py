"""Prometheus, the program that is installed on this machine: it reads the pages of the mesh's services."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atelier_cli.embedded.process import Launch, nothing_of_the_mesh
from atelier_cli.environment import given
from atelier_cli.errors import CliError, ExitCode
from atelier_cli.health import http_serves

RULES: Final = tuple(
    Path(__file__).parents[2] / "ops" / "prometheus" / name for name in ("recording.yml", "alerts.yml")
)
# What is older, or makes the folder larger, is deleted.
_KEPT_TIME: Final = "15d"
_KEPT_SIZE: Final = "1GB"


@dataclass(frozen=True, slots=True)
class MetricsPage:
    """A page that is read.

    Attributes:
        job: Whose it is; the rules know a service by its job.
        address: host:port.
    """

    job: str
    address: str


def chosen_prometheus(program: Path | None, *, asked: bool) -> str:
    """Return the absolute path of the Prometheus to start, or an empty text for none.

    Args:
        program: The program that the user names; by default it is the one on PATH.
        asked: Whether one is wanted where none is named.

    Raises:
        CliError: It is not there, or cannot be run, or would not know the pages to read.
    """
    if program is None and not asked:
        return ""
    if given("ATELIER_METRICS_PORT"):
        raise CliError(
            "ATELIER_METRICS_PORT is set, so the mesh does not know which pages Prometheus has to read; unset it.",
            ExitCode.USAGE,
        )
    found = shutil.which("prometheus" if program is None else program.absolute())
    if found is not None:
        return str(Path(found).absolute())
    if program is not None:
        raise CliError(f"{program} is no program that can be run.")
    raise CliError(
        "Prometheus is not installed: there is no program `prometheus` on PATH. Install it (Debian, Ubuntu: "
        "`apt-get install prometheus`), or name it by --prometheus-program."
    )


class PrometheusServer:
    """One Prometheus; its figures lie in `folder`. It asks for nothing, and lets nobody change anything."""

    name = "prometheus"

    def __init__(
        self,
        folder: Path,
        port: int,
        program: str,
        pages: Sequence[MetricsPage],
        log: Path,
        *,
        rules: Sequence[Path] = RULES,
        seconds: int = 5,
    ) -> None:
        self.folder = folder
        self.port = port
        self.log = log
        self._program = program
        self._pages = pages
        self._rules = rules
        self._seconds = seconds

    @property
    def url(self) -> str:
        """Its address."""
        return f"http://127.0.0.1:{self.port}"

    def prepare(self) -> Launch:
        """Write the configuration and, in a file that Prometheus watches, the addresses of the pages."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        read = [{"targets": [page.address], "labels": {"job": page.job}} for page in self._pages]
        targets = self.folder / "targets.json"
        # Whole or not at all: one that runs may be reading it.
        draft = targets.with_suffix(".draft")
        draft.write_text(json.dumps(read, indent=2), encoding="utf-8")
        draft.replace(targets)
        every = f"{self._seconds}s"
        # Its configuration is YAML, of which JSON is a part.
        configuration = {
            "global": {"scrape_interval": every, "scrape_timeout": every, "evaluation_interval": every},
            "rule_files": [str(path) for path in self._rules],
            "scrape_configs": [{"job_name": "atelier", "file_sd_configs": [{"files": [str(targets)]}]}],
        }
        config = self.folder / "prometheus.yml"
        config.write_text(json.dumps(configuration, indent=2), encoding="utf-8")
        return Launch(
            argv=(
                self._program,
                f"--config.file={config}",
                f"--storage.tsdb.path={self.folder / 'data'}",
                f"--storage.tsdb.retention.time={_KEPT_TIME}",
                f"--storage.tsdb.retention.size={_KEPT_SIZE}",
                f"--web.listen-address=127.0.0.1:{self.port}",
                "--enable-feature=exemplar-storage",
                "--log.level=warn",
            ),
            log=self.log,
            inherits=nothing_of_the_mesh,
        )

    def ready(self) -> bool:
        """Whether it has read what it kept, and answers questions."""
        return http_serves(f"{self.url}/-/ready")
