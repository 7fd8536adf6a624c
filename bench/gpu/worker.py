"""The large model through the worker: seconds a step, memory, and LoRAs. It is measured as the bare call is."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator

from bench.gpu import pictures, stepping
from bench.gpu.memory import memory_of
from bench.gpu.setting import LORAS, MODEL_NAME, Figure, PartError, Setting

PROMPT = "a red dress on a white chair"


def measure(setting: Setting) -> Iterator[Figure]:
    """Time steps, the memory they take, and LoRAs.

    Raises:
        PartError: A picture has not the size that was asked for.
    """
    mesh, scale = setting.running_mesh, setting.scale
    seeds = itertools.count()  # the same picture twice would still be made twice; this leaves no doubt

    def body(steps: int, lora: str | None = None) -> pictures.Body:
        path = None if lora is None else f"styles/{lora}.safetensors"
        return pictures.body(PROMPT, side=scale.side, steps=steps, seed=next(seeds), model=MODEL_NAME, lora=path)

    def make(steps: int, lora: str | None = None) -> float:
        return pictures.make(mesh, [body(steps, lora)])[0].seconds

    few, many = scale.steps
    with memory_of(setting.device, mesh.stack.processes["worker"]) as memory:
        [first] = pictures.make(mesh, [body(few)])
        yield Figure("first picture, model loaded in it", first.seconds, "s")
        if (size := pictures.read(mesh, first).size) != (scale.side, scale.side):
            message = f"The picture has {size} pixels."
            raise PartError(message)
        steps = stepping.take(make, scale)
    yield Figure("a step", steps.step, "s", f"{scale.side}x{scale.side}")
    yield Figure(f"a picture of {many} steps", steps.many, "s", "from the create to the event of its completion")
    yield Figure("peak memory", memory.gib, "GiB", "of the device" if setting.device != "cpu" else "resident")
    for name in LORAS:
        pictures.put_lora(mesh, f"styles/{name}.safetensors", setting.lora(name))
    firsts = [make(few, name) - steps.few for name in LORAS]
    yield Figure(
        "LoRA, first use", statistics.median(firsts), "s", "fetched, checked and loaded: beyond a picture without"
    )
    stays = [make(few, LORAS[-1]) for _ in range(2 * scale.rounds)]
    swaps = [make(few, LORAS[number % len(LORAS)]) for number in range(2 * scale.rounds)]
    swap = statistics.median(swaps) - statistics.median(stays)
    yield Figure("LoRA swapped for a loaded one", swap, "s", "beyond a picture with the same LoRA as before")
    yield Figure("a step with a LoRA", stepping.take(lambda count: make(count, LORAS[0]), scale).step, "s")
