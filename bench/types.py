"""What the mesh adds to each type of task: its work by bare calls of the libraries, and through the mesh, in turn.

Both sides read a picture that is there and write one (the mesh from and to its object store), with the same networks,
steps and threads. The mesh's time runs from sending the create to the event that the task has completed. The aim is a
ratio of 1.10; of films and answers, frames and tokens a second are shown too. What the mesh adds is about the same for
a short and a long task, so that types whose work may be short have a second row with work of a usual size.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import psutil
import torch
from PIL import Image

from bench import bare, stacks
from bench.picture import REST_SECONDS, through_mesh
from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw

_PHOTO = stacks.ROOT / "tests" / "unit" / "modelkit" / "data" / "astronaut.jpg"
_STUDIO = stacks.ROOT / "examples" / "workflows" / "studio.png"
_WARMING = 2


@dataclass(frozen=True, slots=True)
class TypeRow:
    """One type's work.

    Attributes:
        task_type: Its spelling.
        what: The work, in words.
        prepare: Loads what the bare call needs.
        fields: Members of the task, its seed not among them.
        unit: What a result is counted in where it is more than one thing.
        seeded: Whether the task takes a seed.
    """

    task_type: str
    what: str
    prepare: Callable[[bare.Bench], bare.Bare]
    fields: dict[str, Any] = field(default_factory=dict)
    unit: str | None = None
    seeded: bool = False


_NATIVE = {"width": 64, "height": 64}
_LONG_EDIT_STEPS, _LONG_SECONDS = 30, 5
_FILM = {"width": bare.CLIP_SIDE, "height": bare.CLIP_SIDE, "fps": bare.RATE}
ROWS = (
    TypeRow("GENERATION", "64 px, 12 steps", bare.generation, {"prompt": bare.PROMPT, **_NATIVE}, seeded=True),
    TypeRow(
        *("EDITING", "64 px, 12 steps", bare.editing),
        {"prompt": bare.EDIT, "base_image": "dress.png", **_NATIVE},
        seeded=True,
    ),
    TypeRow(
        *("EDITING", f"64 px, {_LONG_EDIT_STEPS} steps", partial(bare.editing, steps=_LONG_EDIT_STEPS)),
        {"prompt": bare.EDIT, "base_image": "dress.png", **_NATIVE, "config": {"steps": _LONG_EDIT_STEPS}},
        seeded=True,
    ),
    TypeRow(
        *("REFINE", "512 px, x2", bare.refine),
        {"base_image_url": "photo.png", "upscale_factor": 2, "upscale_denoise": 0, "face_detail_enabled": False},
    ),
    TypeRow(
        *("BACKGROUND_REMOVE", "1024 px, U2-Net", bare.background_remove),
        {"input_image_paths": ["photo-large.png"]},
    ),
    TypeRow(
        *("BACKGROUND_FIX", "1024 px, replaced", bare.background_fix),
        {"base_image": "photo-large.png", "palette_image": "studio.png", "strategy": "replace"},
    ),
    TypeRow("FACE_ENHANCER", "256 px, one face", bare.face_enhancer, {"input_image": "portrait.png"}),
    TypeRow(
        *("DETAIL_ENHANCER", "512 px", bare.detail_enhancer),
        {"base_image": "soft.png", "reference_image": "large-dress.png", "detail_label": "dress"},
    ),
    TypeRow(
        *(
            "DETAIL_ENHANCER",
            "1024 px",
            partial(bare.detail_enhancer, base="soft-1024.png", reference="1024.png"),
        ),
        {"base_image": "soft-1024.png", "reference_image": "1024.png", "detail_label": "dress"},
    ),
    TypeRow(
        *("IMAGE_ADJUSTER", "1024 px, margins", bare.image_adjuster),
        {
            "input_image": "photo-large.png",
            "target_width": 1024,
            "target_height": 1024,
            "mode": "pad",
            "margin_left": 0.1,
        },
    ),
    TypeRow(
        *("VIDEO_GENERATION", "2 s of 256 px", bare.video_generation),
        {
            "prompt": bare.MOTION,
            "input_image_url": "large-dress.png",
            "duration_seconds": bare.SECONDS,
            "cfg_scale": 1.0,
            "config": _FILM,
        },
        unit="frames",
    ),
    TypeRow(
        *("VIDEO_GENERATION", f"{_LONG_SECONDS} s of 256 px", partial(bare.video_generation, seconds=_LONG_SECONDS)),
        {
            "prompt": bare.MOTION,
            "input_image_url": "large-dress.png",
            "duration_seconds": _LONG_SECONDS,
            "cfg_scale": 1.0,
            "config": _FILM,
        },
        unit="frames",
    ),
    TypeRow(
        *("LLM_INTERACTION", "200 tokens", bare.llm_interaction),
        {
            "prompt": bare.QUESTION,
            "system_prompt": bare.SYSTEM,
            "config": {"max_tokens": bare.TOKENS, "temperature": 0},
        },
        unit="tokens",
    ),
)


@dataclass(frozen=True, slots=True)
class TypePair:
    """One result of each side: seconds, how much it is, and seconds of processor.

    The mesh's processor is that of all its processes but PostgreSQL and the object store.
    """

    bare: float
    mesh: float
    bare_amount: int
    mesh_amount: int
    bare_processor: float
    mesh_processor: float

    @property
    def ratio(self) -> float:
        """Time of the mesh for the same amount, as a multiple of the bare call's."""
        return (self.mesh / self.mesh_amount) / (self.bare / self.bare_amount)


def figures(row: TypeRow, pairs: Sequence[TypePair]) -> str:
    """Return the line of the table: medians, and the rates where a result is counted."""
    alone, mesh = (statistics.median(getattr(pair, side) for pair in pairs) for side in ("bare", "mesh"))
    rates = ""
    if row.unit is not None:
        first, second = (
            statistics.median(getattr(pair, f"{side}_amount") / getattr(pair, side) for pair in pairs)
            for side in ("bare", "mesh")
        )
        rates = f"{first:.1f} : {second:.1f} {row.unit}/s"
    ratio = statistics.median(pair.ratio for pair in pairs)
    processor = statistics.median(pair.mesh_processor / pair.bare_processor for pair in pairs)
    more = statistics.median(pair.mesh - pair.bare for pair in pairs)
    took = f"{alone * 1e3:.0f} | {mesh * 1e3:.0f} | {more * 1e3:.0f} | {ratio:.2f} | {processor:.2f}"
    return f"| {row.task_type} | {row.what} | {took} | {rates} |"


async def _measure(stack: stacks.Stack, row: TypeRow, bench: bare.Bench, pairs: int) -> list[TypePair]:
    make = row.prepare(bench)
    found: list[TypePair] = []
    async with httpx.AsyncClient(timeout=300) as client:
        for number in range(pairs + _WARMING):
            used, begun = time.process_time(), time.perf_counter()
            amount = make(number)
            alone, used_alone = time.perf_counter() - begun, time.process_time() - used
            await asyncio.sleep(REST_SECONDS)
            seed = {"seed": number} if row.seeded else {}
            body = {"task_type": row.task_type, "origin_instance": "bench", **row.fields, **seed}
            used = _processor_seconds(stack)
            made = await through_mesh(client, stack, body)
            await asyncio.sleep(REST_SECONDS)
            used_mesh = _processor_seconds(stack) - used
            tokens = made.task.get("output_tokens") or amount
            if number >= _WARMING:  # the first ones warm both sides
                found.append(TypePair(alone, made.seconds, amount, tokens, used_alone, used_mesh))
    return found


def _processor_seconds(stack: stacks.Stack) -> float:
    roots = [psutil.Process(pid) for pid in stack.processes.values()]
    every = [one for root in roots for one in (root, *root.children(recursive=True))]
    return float(sum(one.cpu_times().user + one.cpu_times().system for one in every))


def _pictures(folder: Path) -> list[Path]:
    """Make the pictures that the types work on."""
    with Image.open(_PHOTO) as opened, Image.open(_STUDIO) as studio:
        photo = opened.convert("RGB")
        made = {
            "photo.png": photo.resize((512, 512), Image.Resampling.LANCZOS),
            "photo-large.png": photo.resize((1024, 1024), Image.Resampling.LANCZOS),
            "portrait.png": photo.resize((256, 256), Image.Resampling.LANCZOS),
            "studio.png": studio.convert("RGB"),
        }
    facts = GarmentFacts("dress", "red", "stripes", "white")
    dress = Image.fromarray(draw(facts, np.random.default_rng(4)).picture)
    made["dress.png"] = dress
    made["large-dress.png"] = large = dress.resize((512, 512), Image.Resampling.LANCZOS)
    made["1024.png"] = huge = dress.resize((1024, 1024), Image.Resampling.LANCZOS)
    made["soft-1024.png"] = huge.resize((320, 320), Image.Resampling.BOX).resize((1024, 1024), Image.Resampling.BICUBIC)
    made["soft.png"] = large.resize((160, 160), Image.Resampling.BOX).resize((512, 512), Image.Resampling.BICUBIC)
    for name, image in made.items():
        image.save(folder / name)
    return [folder / name for name in made]


async def _store(stack: stacks.Stack, files: Sequence[Path]) -> None:
    storage = stack.url.replace("/tasks/", "/storage/images/")
    async with httpx.AsyncClient(timeout=60, headers={**stack.headers, "content-type": "image/png"}) as client:
        for file in files:
            (await client.post(f"{storage}{file.name}", content=file.read_bytes())).raise_for_status()


async def _run(stack: stacks.Stack, rows: Sequence[TypeRow], bench: bare.Bench, pairs: int) -> None:
    await _store(stack, _pictures(bench.folder))
    print("| type | work | bare, ms | mesh, ms | more, ms | ratio, median of pairs | of processor | bare : mesh |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        print(figures(row, await _measure(stack, row, bench, pairs)), flush=True)
        gc.collect()


def main() -> int:
    """Take each type in turn and print a table of medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--types", default="", help="only these, separated by commas")
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1, help="processor threads of each library, on both sides")
    given = parser.parse_args()
    wanted = [row for row in ROWS if not given.types or row.task_type in given.types.split(",")]
    torch.set_num_threads(given.threads)
    cv2.setNumThreads(given.threads)
    environment = {
        "ATELIER_WORKER_TASK_TYPES": "",
        "ATELIER_WORKER_SLOTS": "1",
        "ATELIER_DEVICE": "cpu",
        "ATELIER_TORCH_THREADS": str(given.threads),
    }
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        with stacks.mesh(folder, None, environment) as mesh:
            asyncio.run(_run(mesh, wanted, bare.Bench(folder, given.threads), given.pairs))
    return 0


if __name__ == "__main__":
    sys.exit(main())
