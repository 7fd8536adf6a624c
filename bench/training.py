"""Steps of a training beside a plain diffusers + peft loop, and adapters in serving.

Both train the shipped model on the same drawn pictures, with the same captions, layers, rank, optimiser settings, batch
and objective: no preservation, no samples, no measurements. The plain loop does what diffusers' own example script
(`train_dreambooth_lora_flux.py`, captions of their own, defaults) does in a step: it encodes the caption and the
picture every time. Each run is a process of its own, in turn, so that its peak memory is its own.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.stacks import ROOT

WEIGHTS = ROOT / "models" / "garments" / "weights"
RANK, RATE, SEED, TRIGGER = 16, 1e-4, 42, "zorblax"
PICTURES = 8
LEAST_RATIO, MOST_LOAD_SECONDS, MOST_SWAP_SECONDS = 1.5, 0.1, 0.02
_UNTIMED = 5
_LOOPS = ("plain", "atelier")
_ADAPTERS = 4  # as many as a picture takes


def main() -> int:
    """Measure and print; 0 where every bound is met."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="timed steps of a run")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--run", choices=(*_LOOPS, "serving"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_VERBOSITY="error", OMP_NUM_THREADS=str(given.threads))
    if given.run:
        print(json.dumps(_RUNS[given.run](given.folder, given.steps, given.batch)))
        return 0
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch:
        folder = Path(scratch)
        draw_pictures(folder / "pictures")
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in _LOOPS}
        for number in range(given.rounds):
            for name in _LOOPS if number % 2 == 0 else reversed(_LOOPS):
                runs[name].append(_in_a_process(name, folder, given))
        serving = _in_a_process("serving", folder, given)
    figures = {**compared(runs), **serving}
    print(table(figures, given))
    if given.json is not None:
        given.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if met(figures) else 1


def compared(runs: dict[str, list[dict[str, float]]]) -> dict[str, float]:
    """Return the medians over all runs, and their ratios."""
    figures: dict[str, float] = {}
    for name, each in runs.items():
        for key in each[0]:
            figures[f"{name}_{key}"] = statistics.median(run[key] for run in each)
    figures["ratio_steps"] = figures["atelier_steps_per_second"] / figures["plain_steps_per_second"]
    figures["ratio_steps_cpu"] = figures["plain_cpu_seconds"] / figures["atelier_cpu_seconds"]
    figures["ratio_memory"] = figures["atelier_peak_mib"] / figures["plain_peak_mib"]
    return figures


def met(figures: dict[str, float]) -> bool:
    """Tell whether every bound is met."""
    return (
        figures["ratio_steps"] >= LEAST_RATIO
        and figures["ratio_memory"] <= 1.0
        and figures["load_seconds"] <= MOST_LOAD_SECONDS
        and figures["swap_seconds"] <= MOST_SWAP_SECONDS
    )


def table(figures: dict[str, float], given: argparse.Namespace) -> str:
    """Return the figures in Markdown."""
    settings = f"{given.rounds} runs of {given.steps} steps each, batch {given.batch}, {given.threads} thread(s)"
    lines = [settings, "", "| figure | atelier | plain diffusers + peft | ratio |", "|---|---|---|---|"]
    for key, name, form, ratio in (
        ("steps_per_second", "steps/s, median", ".1f", f"{figures['ratio_steps']:.2f}"),
        ("cpu_seconds", "processor seconds a step", ".4f", f"{1 / figures['ratio_steps_cpu']:.2f}"),
        ("peak_mib", "peak memory, MiB", ".0f", f"{figures['ratio_memory']:.3f}"),
        ("prepare_seconds", "before the first step, s", ".1f", ""),
    ):
        lines.append(f"| {name} | {figures[f'atelier_{key}']:{form}} | {figures[f'plain_{key}']:{form}} | {ratio} |")
    lines.append("")
    for name, text in (("load", "adapter loaded in serving"), ("swap", "adapter swapped for a loaded one")):
        whole, processor = figures[f"{name}_seconds"] * 1e3, figures[f"{name}_cpu_seconds"] * 1e3
        lines.append(f"{text}: {whole:.0f} ms, {processor:.0f} ms of the processor")
    lines.append("all bounds are met" if met(figures) else "NOT all bounds are met")
    return "\n".join(lines)


def draw_pictures(folder: Path) -> None:
    """Draw pictures of one garment, each with a caption of its own."""
    import numpy as np  # noqa: PLC0415 -- only the parent draws
    from PIL import Image  # noqa: PLC0415 -- as above

    from models.garments.catalogue import BACKGROUNDS, GarmentFacts  # noqa: PLC0415 -- as above
    from models.garments.draw import draw  # noqa: PLC0415 -- as above

    folder.mkdir(parents=True)
    random, grounds = np.random.default_rng(SEED), list(BACKGROUNDS)
    for number in range(PICTURES):
        ground = grounds[number % len(grounds)]
        drawn = draw(GarmentFacts("dress", "green", "dots", "red", ground), random, 64)
        Image.fromarray(drawn.picture).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"{TRIGGER} number {number} on {ground}")


def _in_a_process(name: str, folder: Path, given: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, "-m", "bench.training", "--run", name, "--folder", folder]
    command += ["--steps", given.steps, "--batch", given.batch, "--threads", given.threads]
    ended = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, cwd=ROOT)
    figures: dict[str, float] = json.loads(ended.stdout.splitlines()[-1])
    return figures


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _captions(folder: Path) -> list[str]:
    return [(folder / "pictures" / f"{number}.txt").read_text() for number in range(PICTURES)]


def _timed(seconds: Sequence[float], processor: Sequence[float], prepare: float) -> dict[str, float]:
    return {
        "steps_per_second": 1 / statistics.median(seconds[_UNTIMED:]),
        "cpu_seconds": statistics.median(processor[_UNTIMED:]),
        "peak_mib": _peak_mib(),
        "prepare_seconds": prepare,
    }


def run_plain(folder: Path, steps: int, batch: int) -> dict[str, float]:  # noqa: PLR0915 -- one script, to read beside its model
    """Train by a loop as diffusers' example script has it."""
    import copy  # noqa: PLC0415 -- only this run needs it

    import numpy as np  # noqa: PLC0415 -- the parent loads no torch, and neither does the other run load this
    import torch  # noqa: PLC0415 -- as above
    from diffusers import (  # noqa: PLC0415 -- as above
        AutoencoderKL,
        FlowMatchEulerDiscreteScheduler,
        FluxPipeline,
        FluxTransformer2DModel,
    )
    from diffusers.training_utils import compute_density_for_timestep_sampling  # noqa: PLC0415 -- as above
    from peft import LoraConfig  # noqa: PLC0415 -- as above
    from PIL import Image  # noqa: PLC0415 -- as above

    from modelkit.card import read_card  # noqa: PLC0415 -- as above
    from modelkit.training.network import target_layers  # noqa: PLC0415 -- as above

    begun = time.perf_counter()
    torch.manual_seed(SEED)
    card = read_card(WEIGHTS)
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_pretrained(WEIGHTS, subfolder="scheduler")
    scheduler = copy.deepcopy(scheduler)
    vae: Any = AutoencoderKL.from_pretrained(WEIGHTS, subfolder="vae", dtype=torch.float32)
    transformer: Any = FluxTransformer2DModel.from_pretrained(WEIGHTS, subfolder="transformer", dtype=torch.float32)
    encoders: Any = FluxPipeline.from_pretrained(WEIGHTS, transformer=None, vae=None, dtype=torch.float32)
    for part in (vae, transformer, encoders.text_encoder, encoders.text_encoder_2):
        part.requires_grad_(requires_grad=False)
    transformer.add_adapter(
        LoraConfig(
            r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=target_layers(transformer, card)
        )
    )
    parameters = [parameter for parameter in transformer.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8)
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    pixels = [
        torch.from_numpy(np.asarray(Image.open(folder / "pictures" / f"{number}.png"), dtype=np.float32))
        .permute(2, 0, 1)
        .div(127.5)
        .sub(1)
        for number in range(PICTURES)
    ]
    captions = _captions(folder)
    prepare = time.perf_counter() - begun
    transformer.train()
    seconds, processor = [], []
    order: list[int] = []
    for _ in range(steps + _UNTIMED):
        start, spent = time.perf_counter(), time.process_time()
        while len(order) < batch:
            order += torch.randperm(PICTURES).tolist()
        chosen, order = order[:batch], order[batch:]
        with torch.no_grad():
            embeds, pooled, text_ids = encoders.encode_prompt(
                prompt=[captions[number] for number in chosen],
                prompt_2=None,
                max_sequence_length=card.max_sequence_length,
            )
        clean = vae.encode(torch.stack([pixels[number] for number in chosen])).latent_dist.sample()
        clean = (clean - vae.config.shift_factor) * vae.config.scaling_factor
        ids = FluxPipeline._prepare_latent_image_ids(  # noqa: SLF001 -- as the script does
            len(clean), clean.shape[2] // 2, clean.shape[3] // 2, torch.device("cpu"), torch.float32
        )
        noise = torch.randn_like(clean)
        density = compute_density_for_timestep_sampling("logit_normal", len(clean), logit_mean=0.0, logit_std=1.0)
        indices = (density * scheduler.config.num_train_timesteps).long()
        timesteps = scheduler.timesteps[indices]
        known = scheduler.timesteps
        sigmas = scheduler.sigmas[[int((known == timestep).nonzero().item()) for timestep in timesteps]]
        sigmas = sigmas.view(-1, 1, 1, 1)
        noisy = (1.0 - sigmas) * clean + sigmas * noise
        packed = FluxPipeline._pack_latents(noisy, *noisy.shape)  # noqa: SLF001 -- as above
        predicted = transformer(
            hidden_states=packed,
            timestep=timesteps / 1000,
            guidance=None,
            pooled_projections=pooled,
            encoder_hidden_states=embeds,
            txt_ids=text_ids,
            img_ids=ids,
            return_dict=False,
        )[0]
        predicted = FluxPipeline._unpack_latents(  # noqa: SLF001 -- as above
            predicted, clean.shape[2] * 8, clean.shape[3] * 8, 8
        )
        loss = torch.mean((predicted.float() - (noise - clean).float()).reshape(len(clean), -1) ** 2, 1).mean()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        rates.step()
        optimizer.zero_grad()
        loss.detach().item()
        seconds.append(time.perf_counter() - start)
        processor.append(time.process_time() - spent)
    return _timed(seconds, processor, prepare)


def run_atelier(folder: Path, steps: int, batch: int) -> dict[str, float]:
    """Train by `modelkit.training`."""
    from modelkit.device import Device  # noqa: PLC0415 -- the parent loads no torch
    from modelkit.training.dataset import Dataset, Example  # noqa: PLC0415 -- as above
    from modelkit.training.errors import TrainingStopped  # noqa: PLC0415 -- as above
    from modelkit.training.plan import TrainingPlan  # noqa: PLC0415 -- as above
    from modelkit.training.trainer import train  # noqa: PLC0415 -- as above
    from modelkit.training.watching import Stop  # noqa: PLC0415 -- as above

    plan = TrainingPlan(
        str(WEIGHTS),
        TRIGGER,
        rank=RANK,
        steps=10**6,
        learning_rate=RATE,
        batch_size=batch,
        seed=SEED,
        sample_every=10**6,
        validate_every=10**6,
        state_seconds=1e9,
        caption_dropout=0.0,
    )
    examples = [
        Example(folder / "pictures" / f"{number}.png", caption, (64, 64))
        for number, caption in enumerate(_captions(folder))
    ]
    watch = _Clock(steps + _UNTIMED, Stop.CANCEL)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as scratch, contextlib.suppress(TrainingStopped):
        train(plan, Dataset.of(examples), folder=Path(scratch), resume=None, watcher=watch, device=Device("cpu"))
    return _timed(watch.seconds, watch.processor, watch.begun - begun)


class _Clock:
    """Times the steps of a training, and stops it."""

    def __init__(self, steps: int, stop: Any) -> None:
        self._steps, self._stop = steps, stop
        self._last = (0.0, 0.0)
        self.begun = 0.0
        self.seconds: list[float] = []
        self.processor: list[float] = []

    def stopping(self) -> Any:
        if len(self.seconds) >= self._steps:
            return self._stop
        self._last = (time.perf_counter(), time.process_time())
        return None

    def stepped(self, _report: Any) -> None:
        self.begun = self.begun or self._last[0]
        self.seconds.append(time.perf_counter() - self._last[0])
        self.processor.append(time.process_time() - self._last[1])

    def wanted_samples(self) -> Sequence[str]:
        return ()

    def cached(self, done: int, total: int) -> None:
        pass

    def validated(self, _points: Any) -> None:
        pass

    def sampled(self, _sample: Any) -> None:
        pass

    def kept_state(self, step: int, folder: Path) -> None:
        pass

    def kept_save(self, step: int, file: Path) -> None:
        pass

    def noted(self, _line: str) -> None:
        pass


def run_serving(folder: Path, steps: int, batch: int) -> dict[str, float]:  # noqa: ARG001 -- as the other runs
    """Load and swap adapters of a training in the code that serves: `modelkit.residency` and its adapters."""
    import torch  # noqa: PLC0415 -- the parent loads no torch
    from safetensors.torch import save_file  # noqa: PLC0415 -- as above

    from meshkit.worker.handlers import Need  # noqa: PLC0415 -- as above
    from modelkit.requests import AdapterFile  # noqa: PLC0415 -- as above
    from modelkit.residency import Models  # noqa: PLC0415 -- as above
    from modelkit.training.network import target_layers  # noqa: PLC0415 -- as above

    models = Models(str(WEIGHTS), "cpu", 1 << 30, threads=1)
    with models.lend([Need("model", "flux")]) as lent:
        model = lent["model"]
        transformer = model.pipe.transformer
        files = []
        for number in range(_ADAPTERS):
            random = torch.Generator().manual_seed(number)
            layers = {}
            for name in target_layers(transformer, model.card):
                layer = transformer.get_submodule(name)
                layers[f"transformer.{name}.lora_A.weight"] = torch.randn(RANK, layer.in_features, generator=random)
                layers[f"transformer.{name}.lora_B.weight"] = torch.randn(layer.out_features, RANK, generator=random)
            files.append(AdapterFile(folder / f"{number}.safetensors", 1.0))
            save_file(layers, files[-1].path)
        loads = [_timed_use(model, file) for file in files]
        swaps = [_timed_use(model, file) for file in files * 3]
    figures: dict[str, float] = {}
    for name, taken in (("load", loads), ("swap", swaps)):
        figures[f"{name}_seconds"] = statistics.median(seconds for seconds, _ in taken)
        figures[f"{name}_cpu_seconds"] = statistics.median(processor for _, processor in taken)
    return figures


def _timed_use(model: Any, file: Any) -> tuple[float, float]:
    """Activate an adapter; return the seconds that it took, and those of the processor."""
    begun, spent = time.perf_counter(), time.process_time()
    model.adapters.use([file])
    return time.perf_counter() - begun, time.process_time() - spent


_RUNS = {"plain": run_plain, "atelier": run_atelier, "serving": run_serving}


if __name__ == "__main__":
    sys.exit(main())
