"""The recipe, start to end: draw, autoencoder, text, flow, polish. Ends by the clock and can be stopped anywhere.

    python -m models.garments.train --out DIR --minutes 95

Every stage has a share of the minutes and saves its state as it goes; started again with the same DIR, the recipe goes
on where it was, and the time already spent counts. `DIR/latest` is always a complete FluxPipeline folder once the text
stage is done.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

# Pictures' worth of activations are freed and allocated on every step. glibc hands blocks this large back to the
# system each time, and the page faults cost a third of the autoencoder's step: it is told to keep them. Read at start.
_ENVIRONMENT: Final = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",  # spinning threads would take shared cores from other processes
    "HF_HUB_OFFLINE": "1",
}
if __name__ == "__main__" and os.environ.get("MALLOC_TRIM_THRESHOLD_") is None:
    os.execve(  # noqa: S606 -- restarts this program with the allocator's settings
        sys.executable, [sys.executable, "-m", "models.garments.train", *sys.argv[1:]], {**os.environ, **_ENVIRONMENT}
    )

import numpy as np  # noqa: E402 -- after the environment above
import torch  # noqa: E402 -- as above

from models.garments import vae as vaes  # noqa: E402 -- as above
from models.garments.catalogue import GarmentFacts  # noqa: E402 -- as above
from models.garments.draw import Picture, contact_sheet, draw_many  # noqa: E402 -- as above
from models.garments.flow import FlowTrainer, export, make_transformer  # noqa: E402 -- as above
from models.garments.libraries import Autoencoder, AutoencoderKL  # noqa: E402 -- as above
from models.garments.stages import Stage, StageClock, run_stage, write_state  # noqa: E402 -- as above
from models.garments.text import PromptClassifier, TextEncoders, load_text_side, make_text_side, save_text_side  # noqa: E402 -- as above

log = logging.getLogger("garments")

_PART: Final = 500  # pictures drawn from one seed
_UNSEEN: Final = 256  # pictures at the end of the set that only measure the round trip


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of a run.

    Attributes:
        out: Folder of the data, the states and the pipeline.
        minutes: Wall clock for all stages together; drawing comes out of the autoencoder's share.
        pictures: Drawings in the training set.
        size: Side of a picture, in pixels.
        width: Transformer's width; a multiple of 32.
        vae_batch: Pictures per step of the autoencoder.
        flow_batch: Pictures per step of the transformer.
        step_limit: Most steps per stage, for tests; 0 is no limit.
        seed: Of everything.
        save_seconds: Time between two saved states.
        export_seconds: Time between two refreshed `latest` folders.
    """

    out: Path
    minutes: float = 95.0
    pictures: int = 36_000
    size: int = 64
    width: int = 192
    vae_batch: int = 12
    flow_batch: int = 32
    step_limit: int = 0
    seed: int = 0
    save_seconds: float = 120.0
    export_seconds: float = 480.0

    def seconds(self, share: float) -> float:
        """Seconds of a stage."""
        return self.minutes * 60 * share


SHARES: Final = {"vae": 0.36, "text": 0.03, "flow": 0.6, "polish": 0.04}


def _run(recipe: Recipe, stage: Stage) -> None:
    run_stage(
        recipe.out,
        stage,
        recipe.seconds(SHARES[stage.name]),
        step_limit=recipe.step_limit,
        save_seconds=recipe.save_seconds,
        export_seconds=recipe.export_seconds,
    )


def dataset(recipe: Recipe) -> tuple[Picture, list[GarmentFacts]]:
    """Draw the training set, or read it where it was drawn before. Parts have seeds of their own."""
    folder = recipe.out / "data"
    folder.mkdir(parents=True, exist_ok=True)
    pictures_at, facts_at = (
        folder / f"{recipe.size}-{recipe.pictures}.npy",
        folder / f"{recipe.size}-{recipe.pictures}-facts.npy",
    )
    if not facts_at.exists():
        started = time.monotonic()
        counts = [min(_PART, recipe.pictures - i) for i in range(0, recipe.pictures, _PART)]
        parts = [draw_many(1000 + recipe.seed * 100_000 + i, count, recipe.size) for i, count in enumerate(counts)]
        np.save(pictures_at, np.concatenate([p for p, _ in parts]))
        rows = [(f.garment, f.colour, f.print, f.second, f.background) for _, part in parts for f in part]
        np.save(facts_at, np.array(rows))
        log.info("drew %d pictures in %.0f s", recipe.pictures, time.monotonic() - started)
    return np.load(pictures_at), [GarmentFacts(*map(str, row)) for row in np.load(facts_at)]


def _adam(model: torch.nn.Module, lr: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.99), weight_decay=1e-4
    )


def _vae_stage(recipe: Recipe, name: str, vae: Autoencoder, pictures: Picture, refresh: Callable[[], None]) -> Stage:
    """Return the autoencoder's two stages: "vae" trains it whole, "polish" its decoder alone, more gently."""
    lr = {"vae": 2e-3, "polish": 1.5e-3}[name]
    vae.requires_grad_(requires_grad=True)
    vae.encoder.requires_grad_(name == "vae")
    optimiser = _adam(vae, lr)
    rng = np.random.default_rng(recipe.seed)

    def step(clock: StageClock) -> float:
        for group in optimiser.param_groups:
            group["lr"] = (
                lr * min(1.0, (clock.steps + 1) / 50) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * clock.progress)))
            )
        x = vaes.to_tensor(
            pictures[np.sort(rng.integers(0, len(pictures) - min(_UNSEEN, len(pictures) // 2), recipe.vae_batch))]
        )
        loss = vaes.vae_loss(vae, x) if name == "vae" else vaes.polish_loss(vae, x)
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimiser.step()
        return float(loss.detach())

    def state() -> dict[str, Any]:
        return {"vae": vae.state_dict(), "optimiser": optimiser.state_dict(), "rng": rng.bit_generator.state}

    def restore(saved: dict[str, Any]) -> None:
        vae.load_state_dict(saved["vae"])
        optimiser.load_state_dict(saved["optimiser"])
        rng.bit_generator.state = saved["rng"]

    return Stage(name, step, state, restore, refresh)


def _autoencoder(recipe: Recipe, pictures: Picture) -> Autoencoder:
    folder = recipe.out / "vae"
    if folder.exists():
        vae = AutoencoderKL.from_pretrained(folder).to(memory_format=torch.channels_last)
    else:
        vae = vaes.make_vae(recipe.size)
        sheet = recipe.out / "round_trip.png"
        _run(recipe, _vae_stage(recipe, "vae", vae, pictures, lambda: _show_round_trip(vae, pictures, sheet)))
        vaes.level_channels(vae, pictures[:2000])
        vae.save_pretrained(folder)
        log.info("vae: %.2f dB on unseen drawings", vaes.psnr(vae, pictures[-_UNSEEN:]))
    return vae.eval().requires_grad_(requires_grad=False)


@torch.no_grad()
def _show_round_trip(vae: Autoencoder, pictures: Picture, path: Path) -> None:
    some = pictures[-24:]
    back = vaes.to_pictures(vae.decode(vae.encode(vaes.to_tensor(some)).latent_dist.mean).sample)
    contact_sheet([p for pair in zip(some, back, strict=True) for p in pair], 12, 2).save(path)


def _text_side(recipe: Recipe) -> TextEncoders:
    folder, start = recipe.out / "text", recipe.out / "text-start"
    if not (folder / "text_encoder_2").exists():
        # Tokenizers are learnt once and kept: a resumed stage must not meet a vocabulary in another order.
        if not (start / "text_encoder_2").exists():
            save_text_side(make_text_side(), start)
        namer = PromptClassifier(load_text_side(start), recipe.seed)
        seen: list[list[float]] = []

        def step(clock: StageClock) -> float:
            loss, accuracies = namer.step(clock.progress, min(1.0, (clock.steps + 1) / 30))
            seen.append(accuracies)
            return loss

        _run(recipe, Stage("text", step, namer.state, namer.restore))
        if seen:
            log.info("text: accuracies, CLIP then T5: %s", np.mean(seen[-50:], axis=0).round(3).tolist())
        save_text_side(namer.side, folder)
    side = load_text_side(folder)
    side.freeze()
    return side


def _latents(recipe: Recipe, vae: Autoencoder, pictures: Picture) -> torch.Tensor:
    path = recipe.out / "state" / "latents.pt"
    if not path.exists():
        write_state(path, {"z": vaes.encode(vae, pictures)})
    z: torch.Tensor = torch.load(path)["z"].float()
    scaled: torch.Tensor = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled.half()


def train(recipe: Recipe) -> Path:
    """Run or resume the whole recipe; return the pipeline's folder."""
    torch.manual_seed(recipe.seed)
    recipe.out.mkdir(parents=True, exist_ok=True)
    latest = recipe.out / "latest"
    pictures, facts = dataset(recipe)
    vae = _autoencoder(recipe, pictures)
    side = _text_side(recipe)
    trainer = FlowTrainer(
        make_transformer(recipe.width), side, _latents(recipe, vae, pictures), facts, seed=recipe.seed
    )

    def refresh() -> None:
        export(latest, trainer.averaged(), vae, side, recipe.size)

    def step(clock: StageClock) -> float:
        return trainer.step(clock.progress, recipe.flow_batch)

    _run(recipe, Stage("flow", step, trainer.state, trainer.restore, refresh))
    _run(recipe, _vae_stage(recipe, "polish", vae, pictures, refresh))
    _show_round_trip(vae, pictures, recipe.out / "polished.png")
    log.info("polish: %.2f dB on unseen drawings", vaes.psnr(vae, pictures[-_UNSEEN:]))
    refresh()
    return latest


def main() -> None:
    """Read the command line and run the recipe."""
    usual = Recipe(Path())
    parser = argparse.ArgumentParser(description="Train the garments model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--pictures", type=int, default=usual.pictures)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--step-limit", type=int, default=0, help="most steps per stage, to try the recipe out")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.set_num_threads(given.threads)
    folder = train(Recipe(given.out, given.minutes, given.pictures, seed=given.seed, step_limit=given.step_limit))
    log.info("done: %s, %.1f MB", folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6)


if __name__ == "__main__":
    main()
