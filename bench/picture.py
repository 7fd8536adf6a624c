"""What the mesh adds to a picture: the bare diffusers call and the same picture through the mesh, in turn.

Both make the same call: model, native size, steps, guidance and threads are those of the model's card. The mesh's time
runs from sending the create to the event that the task has completed, its picture stored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from bench import stacks

PROMPT = "a red dress"
# After a call OpenMP's threads spin for 8 ms: neither side is timed while the other's threads spin.
REST_SECONDS = 0.05


def bare_call(folder: Path, *, threads: int, steps: int) -> Callable[[int], float]:
    """Load the pipeline once; the result makes one picture of a seed and returns the seconds it took."""
    import torch  # noqa: PLC0415 -- only this process of the benchmark needs it
    from diffusers import FluxPipeline  # noqa: PLC0415 -- as above

    torch.set_num_threads(threads)
    card = json.loads((folder / "atelier.json").read_text())
    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    guidance = card["guidance"]

    def make(seed: int) -> float:
        begun = time.perf_counter()
        pipeline(
            prompt=PROMPT,
            negative_prompt=guidance.get("negative_prompt"),
            true_cfg_scale=guidance.get("true_cfg_scale", 1.0),
            width=card["native_size"],
            height=card["native_size"],
            num_inference_steps=steps,
            max_sequence_length=card["max_sequence_length"],
            generator=torch.Generator("cpu").manual_seed(seed),
        )
        return time.perf_counter() - begun

    return make


@dataclass(frozen=True, slots=True)
class MeshPicture:
    """A picture that the mesh made.

    Attributes:
        seconds: From sending the create to the event of its completion.
        task: The task as that event has it.
    """

    seconds: float
    task: dict[str, Any]


async def through_mesh(client: httpx.AsyncClient, stack: stacks.Stack, body: dict[str, object]) -> MeshPicture:
    """Create the task and follow its events to the end.

    Raises:
        RuntimeError: the task did not complete.
    """
    begun = time.perf_counter()
    created = await client.post(stack.url, json=body, headers=stack.headers)
    created.raise_for_status()
    task = created.json()
    async with client.stream("GET", f"{stack.url}{task['id']}/events", headers=stack.headers) as events:
        async for line in events.aiter_lines():
            if line.startswith("data:"):
                task = json.loads(line[5:])["task"]
                if task["status"] in {"COMPLETED", "FAILED", "CANCELLED"}:
                    break
    took = time.perf_counter() - begun
    if task["status"] != "COMPLETED":
        message = f"the task ended {task['status']}: {task.get('errors')}"
        raise RuntimeError(message)
    return MeshPicture(took, task)


async def _pairs(stack: stacks.Stack, bare: Callable[[int], float], *, pairs: int, size: int, steps: int) -> None:
    bares: list[float] = []
    meshes: list[float] = []
    async with httpx.AsyncClient(timeout=120) as client:
        for number in range(pairs + 2):
            body: dict[str, object] = {
                "task_type": "GENERATION",
                "origin_instance": "bench",
                "prompt": PROMPT,
                "width": size,
                "height": size,
                "seed": number,
                "config": {"steps": steps},
            }
            alone = bare(number)
            await asyncio.sleep(REST_SECONDS)
            mesh = (await through_mesh(client, stack, body)).seconds
            await asyncio.sleep(REST_SECONDS)
            if number >= 2:  # the first two warm both sides
                bares.append(alone)
                meshes.append(mesh)
    ratio = statistics.median(mesh / alone for mesh, alone in zip(meshes, bares, strict=True))
    print("| steps | bare, ms | mesh, ms | ratio, median of pairs |")
    print("|---|---|---|---|")
    print(f"| {steps} | {statistics.median(bares) * 1e3:.0f} | {statistics.median(meshes) * 1e3:.0f} | {ratio:.3f} |")


def main() -> int:
    """Interleave pairs and print medians."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=stacks.ROOT / "models" / "garments" / "weights")
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads, on both sides")
    parser.add_argument("--steps", type=int, help="the card's default where absent")
    given = parser.parse_args()
    card = json.loads((given.model / "atelier.json").read_text())
    steps = given.steps or card["steps"]["default"]
    bare = bare_call(given.model, threads=given.threads, steps=steps)
    environment = {
        "ATELIER_MODEL": str(given.model),
        "ATELIER_WORKER_TASK_TYPES": "GENERATION",
        "ATELIER_WORKER_SLOTS": "1",
        "ATELIER_TORCH_THREADS": str(given.threads),
    }
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        folder.chmod(0o711)
        with stacks.mesh(folder, None, environment) as mesh:
            asyncio.run(_pairs(mesh, bare, pairs=given.pairs, size=card["native_size"], steps=steps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
