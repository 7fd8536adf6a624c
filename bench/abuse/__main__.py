"""Start a mesh, run the rows, print the table."""

from __future__ import annotations

import argparse
import os
import resource
import sys
import tempfile
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path

from bench import abuse
from bench.abuse import backlog, faults, replicas, requests
from bench.abuse.measuring import HEAD, measure
from bench.abuse.other import OtherTenant
from bench.abuse.peers import Peers
from bench.abuse.rows import ROWS, Abuse, MisuseRow, NotTriedError
from tests.e2e.harness import RunningMesh
from tests.e2e.small_disks import NoSmallDisksError, SmallDisks, small_disks

ROW_MODULES = (requests, faults, replicas, backlog)


class Meshes:
    """The mesh of most rows, and one on small disks; each is started at its first use.

    Args:
        peers: Servers that tasks may name.
        stack: Stops the meshes.
    """

    def __init__(self, peers: Peers, stack: ExitStack) -> None:
        self._stack = stack
        self._folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atelier-abuse-")))
        self._folder.chmod(0o711)  # PostgreSQL drops to `nobody` under root
        self._environment = {
            "ATELIER_FETCH_ALLOW_PRIVATE": peers.allowed,
            "ATELIER_ENABLE_NOOP": "true",
            "ATELIER_WORKER_TASK_TYPES": "NOOP,IMAGE_ADJUSTER",
            "ATELIER_WORKER_SLOTS": "16",
        }

    @cached_property
    def plain(self) -> RunningMesh:
        """The mesh of most rows."""
        return self._up(self._folder / "plain")

    @cached_property
    def small(self) -> RunningMesh:
        """A mesh on small disks.

        Raises:
            NotTriedError: They cannot be mounted.
        """
        try:
            disks = self._stack.enter_context(small_disks(self._folder / "small"))
        except NoSmallDisksError as error:
            raise NotTriedError(str(error)) from error
        return self._up(disks.folder, disks)

    def _up(self, folder: Path, disks: SmallDisks | None = None) -> RunningMesh:
        mesh = RunningMesh(folder, self._environment, disks)
        self._stack.callback(mesh.down)
        mesh.up()
        return mesh


def _run(one: MisuseRow, meshes: Meshes, peers: Peers, rest_seconds: float) -> bool:
    """Run one row and print it; return whether it came out right."""
    try:
        mesh = meshes.small if one.small_disks else meshes.plain
        headers = {"Authorization": f"Bearer {mesh.token('other')}"}
        other = OtherTenant(mesh.url, headers, f"http://127.0.0.1:{peers.hook}/", peers.arrived)
        return measure(one, Abuse(mesh, peers, other), rest_seconds)
    except NotTriedError as error:
        print(f"| {one.name} | not tried: {error} | | | | | | | |", flush=True)
        return True


def main() -> int:
    """Run the rows and print the table; 1 if a row came out wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.abuse", description=abuse.__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--rest", type=float, default=5.0, help="seconds between a row's end and the last measurement")
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    peers = Peers().started()
    with ExitStack() as stack:
        meshes = Meshes(peers, stack)
        print(HEAD, flush=True)
        results = [_run(one, meshes, peers, given.rest) for one in ROWS if given.only in one.name]
    print(f"The machine's load was {', '.join(f'{each:.0f}' for each in os.getloadavg())}.")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
