"""How soon listeners hear what is on a photo: from its file closed to `detection.new`, one photo at a time at rest.

The mesh is one that `atelier up` starts, with a worker that looks at photos on the processor. Told beside it: the
memory of the process that watches the folders, before the first photo and after the last.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from PIL import Image, ImageDraw
from websockets.asyncio.client import ClientConnection, connect

from bench.stacks import ROOT, Stack, mesh

_PHOTO = ROOT / "tests" / "unit" / "modelkit" / "data" / "people" / "obama.jpg"
_SIZE = (1640, 2048)
_WAIT_SECONDS = 60.0
_WARM = 3
SETTINGS = {
    "ATELIER_WORKER_TASK_TYPES": "PHOTO_DETECTION",
    "ATELIER_DEVICE": "cpu",
    "ATELIER_TRAINER": "off",
    "ATELIER_FIRST_STEP_DEADLINE_SECONDS": "120",
}


@dataclass(frozen=True, slots=True)
class CaptureTimes:
    """What was measured.

    Attributes:
        seconds: From file closed to `detection.new`, one for each photo.
        before_bytes: Memory of the watching process at rest, before the first photo.
        after_bytes: The same after the last.
    """

    seconds: Sequence[float]
    before_bytes: int
    after_bytes: int

    def lines(self) -> list[str]:
        """Return the figures as rows of a table."""
        ordered = sorted(self.seconds)
        late = ordered[min(len(ordered) - 1, int(0.95 * len(ordered)))]
        memory = f"{self.before_bytes / 1e6:.0f} | {self.after_bytes / 1e6:.0f}"
        return [
            "| photos | p50, s | p95, s | longest, s | watcher before, MB | after, MB |",
            "|---|---|---|---|---|---|",
            f"| {len(ordered)} | {statistics.median(ordered):.2f} | {late:.2f} | {ordered[-1]:.2f} | {memory} |",
        ]


def photo(number: int, size: tuple[int, int] = _SIZE) -> bytes:
    """Return a photo of a person like no other."""
    with Image.open(_PHOTO) as opened:
        image = opened.convert("RGB").resize(size, Image.Resampling.LANCZOS)
    ImageDraw.Draw(image).rectangle((0, 0, 31, 31), fill=(number % 256, number // 256 % 256, 64))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=90)
    return out.getvalue()


async def heard(client: ClientConnection, camera: str) -> None:
    """Wait until a listener is told of a detection of a camera."""
    while True:
        message = json.loads(await client.recv())
        if message.get("type") == "detection.new" and message["data"]["camera_id"] == camera:
            return


async def measure(stack: Stack, root: Path, count: int, pause_seconds: float) -> CaptureTimes:
    """Drop photos one by one, each into a folder of its own camera, and hear of each."""
    watcher = psutil.Process(stack.processes["capture"])
    address = f"ws{stack.url.removeprefix('http').partition('/api/')[0]}/ws/events"
    token = stack.headers["Authorization"].removeprefix("Bearer ")
    seconds: list[float] = []
    async with connect(f"{address}?token={token}", max_size=None) as client:
        before = watcher.memory_info().rss
        for number in range(count + _WARM):
            camera = f"camera-{number % 3}"
            (root / camera).mkdir(exist_ok=True)
            content = photo(number)
            await asyncio.sleep(pause_seconds)
            (root / camera / f"{number}.jpg").write_bytes(content)
            began = time.perf_counter()
            async with asyncio.timeout(_WAIT_SECONDS):
                await heard(client, camera)
            if number >= _WARM:  # networks are loaded by the first
                seconds.append(time.perf_counter() - began)
            await _quiet(client)
    return CaptureTimes(seconds, before, watcher.memory_info().rss)


async def _quiet(client: ClientConnection) -> None:
    """Pass over what else is told of the photo."""
    try:
        while True:
            async with asyncio.timeout(0.3):
                await client.recv()
    except TimeoutError:
        return


def main() -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=60, help="photos that are measured")
    parser.add_argument("--pause", type=float, default=0.7, help="seconds before each")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        root = folder / "cameras"
        root.mkdir()
        with mesh(folder, None, {**SETTINGS, "ATELIER_CAMERA_ROOT": str(root)}) as stack:
            figures = asyncio.run(measure(stack, root, given.count, given.pause))
    for line in figures.lines():
        print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
