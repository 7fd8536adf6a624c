"""Check and measure what runs on a GPU; print a table, write JSON.

Exit status: 0 where every part went well, 1 where one failed, 2 where the check cannot run here.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from bench.gpu import check, report, running
from bench.gpu.mesh import Mesh
from bench.gpu.parts import PARTS, choose
from bench.gpu.setting import SCALES, Setting

TOTAL_SECONDS = 660.0
_STATUS_FAILED, _STATUS_CANNOT_RUN = 1, 2
# What `bench.gpu.pipelines` loads, in so far as it is imported late.
_PRELOADED = (
    "bench.gpu.pipelines",
    "diffusers.pipelines.flux.pipeline_flux",
    "transformers.models.clip.modeling_clip",
    "transformers.models.t5.modeling_t5",
)
# Nothing is looked up elsewhere, and libraries' advice would stand between the lines of the table.
_QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the check; 0 where every part went well, 1 where one failed, 2 where it cannot run here."""
    given = _arguments(arguments)
    try:
        parts = choose(given.only)
    except ValueError as error:
        print(error, file=sys.stderr)
        return _STATUS_CANNOT_RUN
    os.environ.update(_QUIET)
    if given.device == "cpu":
        if given.scale != "tiny":
            print("A CPU runs only --scale tiny: the full one needs a GPU.", file=sys.stderr)
            return _STATUS_CANNOT_RUN
        # On a shared machine threads of one computation wait for each other; every process of the run inherits this.
        os.environ.setdefault("OMP_NUM_THREADS", "1")
        running.preload(*_PRELOADED)
    elif not _has_cuda():
        print(
            "The GPU check needs CUDA, and torch sees none here. To try its code: --device cpu --scale tiny.",
            file=sys.stderr,
        )
        return _STATUS_CANNOT_RUN
    machine = report.Machine(
        device=_device_name(given.device),
        torch=importlib.metadata.version("torch"),
        diffusers=importlib.metadata.version("diffusers"),
        scale=given.scale,
        date=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )
    with tempfile.TemporaryDirectory(prefix="atelier-gpu-", dir=given.folder) as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        setting = Setting(given.device, SCALES[given.scale], folder)
        mesh = Mesh(folder / "meshes", given.device, setting.scale, setting.model)
        outcomes = check.run(parts, setting, mesh, given.seconds)
    print(f"\n{report.table(machine, outcomes)}")
    if given.json is not None:
        given.json.write_text(json.dumps(report.as_json(machine, outcomes), indent=2) + "\n")
    return _STATUS_FAILED if any(outcome.error for outcome in outcomes) else 0


def _arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument(
        "--scale", choices=tuple(SCALES), default="full", help="tiny tries the code, and measures nothing"
    )
    parser.add_argument(
        "--only", action="append", default=[], metavar="PART", help=", ".join(part.name for part in PARTS)
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")
    parser.add_argument("--folder", type=Path, help="where the large model is written for the time; 26 GB")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="how long all parts may take together")
    return parser.parse_args(arguments)


def _has_cuda() -> bool:
    import torch  # noqa: PLC0415 -- seconds, which `--help` does not need

    return bool(torch.cuda.is_available())


def _device_name(device: str) -> str:
    if device == "cpu":
        return f"{platform.machine()} CPU, {os.cpu_count()} cores"
    import torch  # noqa: PLC0415 -- heavy; only in this part's process

    return str(torch.cuda.get_device_name())


if __name__ == "__main__":
    # A signal to end must stop the mesh too, which lives on without this process.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    sys.exit(main())
