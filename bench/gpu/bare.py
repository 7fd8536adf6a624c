"""The large model by bare diffusers: seconds a step, memory, LoRAs, and `torch.compile`."""

from __future__ import annotations

import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch

from bench.gpu import pipelines, stepping
from bench.gpu.memory import memory_of
from bench.gpu.model import SIZES
from bench.gpu.setting import LORAS, Figure, Setting

PROMPT = "a red dress on a white chair"


def measure(setting: Setting) -> Iterator[Figure]:
    """Time steps, the memory they take, and LoRAs."""
    _touch(setting)
    with memory_of(setting.device, os.getpid()) as memory:
        begun = time.perf_counter()
        pipeline = pipelines.load(setting.model, setting.device)
        yield Figure("model loaded", time.perf_counter() - begun, "s")
        make = _maker(pipeline, setting)
        make(setting.scale.steps[0])
        steps = stepping.take(make, setting.scale)
    side = setting.scale.side
    yield Figure("a step", steps.step, "s", f"{side}x{side}")
    yield Figure(f"a picture of {setting.scale.steps[1]} steps", steps.many, "s")
    yield Figure("peak memory", memory.gib, "GiB", "of the device" if setting.device != "cpu" else "resident")
    yield from _loras(pipeline, setting, make)


def measure_compiled(setting: Setting) -> Iterator[Figure]:
    """Time steps without and with `torch.compile`."""
    pipeline = pipelines.load(setting.model, setting.device)
    make = _maker(pipeline, setting)
    few = setting.scale.steps[0]
    make(few)
    off = stepping.take(make, setting.scale)
    yield Figure("a step, torch.compile off", off.step, "s")
    # Compiling each kind of block once takes seconds, compiling the network as a whole minutes.
    note = "each kind of block once"
    if setting.device == "cpu":
        # Making and compiling C++ takes minutes on a small machine; this backend runs the traced graph as it is.
        pipeline.transformer.compile_repeated_blocks(backend="eager")
        note = "traced only: making code for a CPU would take minutes"
    else:
        pipeline.transformer.compile_repeated_blocks()
    yield Figure("compiled", make(few) - off.few, "s", note)
    on = stepping.take(make, setting.scale)
    yield Figure("a step, torch.compile on", on.step, "s", f"{off.step / on.step:.2f} times as fast as off")


def _touch(setting: Setting) -> None:
    """Make the device's context, so that it does not count as memory of the model."""
    torch.zeros(1, device=setting.device)


def _maker(pipeline: Any, setting: Setting) -> Callable[[int], float]:
    length = SIZES[setting.scale.name].card["max_sequence_length"]

    def make(steps: int) -> float:
        begun = time.perf_counter()
        pipeline(
            prompt=PROMPT,
            width=setting.scale.side,
            height=setting.scale.side,
            num_inference_steps=steps,
            max_sequence_length=length,
            generator=torch.Generator("cpu").manual_seed(0),
        )
        return time.perf_counter() - begun

    return make


def _loras(pipeline: Any, setting: Setting, make: Callable[[int], float]) -> Iterator[Figure]:
    """Time how a LoRA is loaded, and how another that is loaded takes its place."""
    loads = []
    for name in LORAS:
        begun = time.perf_counter()
        with warnings.catch_warnings():
            # peft points out that the model has adapters already, which here is the aim.
            warnings.simplefilter("ignore", UserWarning)
            pipeline.load_lora_weights(str(setting.lora(name)), adapter_name=name)
        loads.append(time.perf_counter() - begun)
    yield Figure("LoRA loaded from its file", statistics.median(loads), "s", f"median of {len(loads)}")
    swaps = []
    for number in range(2 * setting.scale.rounds):
        begun = time.perf_counter()
        pipeline.set_adapters([LORAS[number % len(LORAS)]])
        swaps.append(time.perf_counter() - begun)
    make(setting.scale.steps[0])
    yield Figure("LoRA swapped for a loaded one", statistics.median(swaps), "s", "set_adapters")
    yield Figure("a step with a LoRA", stepping.take(make, setting.scale).step, "s")
