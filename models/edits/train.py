"""The recipe: draw pairs, teach the text encoders to read instructions, go on with the garments transformer.

    python -m models.edits.train --out DIR --minutes 120 [--batch 32 --processes 2]

Ends by the clock or by steps and can be stopped anywhere: started again with the same DIR it goes on where it was. The
autoencoder is the garments model's own. `DIR/latest` is a complete FluxKontextPipeline folder after the text stage.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# As for the garments model: blocks that are kept, and threads that sleep while they wait, make a step twice as fast.
_ENVIRONMENT: Final = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
    "OMP_WAIT_POLICY": "PASSIVE",
    "HF_HUB_OFFLINE": "1",
}
if __name__ == "__main__" and os.environ.get("MALLOC_TRIM_THRESHOLD_") is None:
    os.execve(  # noqa: S606 -- restarts this program with the allocator's settings
        sys.executable, [sys.executable, "-m", "models.edits.train", *sys.argv[1:]], {**os.environ, **_ENVIRONMENT}
    )

import numpy as np  # noqa: E402 -- after the environment above
import torch  # noqa: E402 -- as above

from models.edits.flow import EditBatches, EditTrainer, export_edits, token_ids  # noqa: E402 -- as above
from models.edits.pairs import WORDINGS, Pairs, draw_parts  # noqa: E402 -- as above
from models.edits.wording import HEADS, worded  # noqa: E402 -- as above
from models.garments import vae as vaes  # noqa: E402 -- as above
from models.garments.draw import Picture  # noqa: E402 -- as above
from models.garments.libraries import Autoencoder, AutoencoderKL, FluxTransformer2DModel  # noqa: E402 -- as above
from models.garments.stages import Stage, StageClock, run_stage, write_state  # noqa: E402 -- as above
from models.garments.text import PromptClassifier, TextEncoders, load_text_side, save_text_side  # noqa: E402 -- as above

log = logging.getLogger("edits")

_GARMENTS: Final = Path(__file__).parent.parent / "garments" / "weights"
SHARES: Final = {"text": 0.06, "flow": 0.94}


@dataclass(frozen=True, slots=True)
class EditRecipe:
    """Settings of a run.

    Attributes:
        out: Folder of the drawings, the states and the pipeline.
        minutes: Wall clock for both stages together; drawing and encoding come on top.
        families: Scenes with their changes; six pictures and about fourteen pairs each.
        size: Side of a picture, in pixels.
        batch: Pairs per step of the transformer.
        lr: The transformer's learning rate.
        device: Where the networks are trained.
        processes: Parts drawn at once.
        step_limit: Most steps per stage, for tests; 0 is no limit.
        seed: Of everything.
        save_seconds: Time between two saved states.
        export_seconds: Time between two refreshed `latest` folders.
    """

    out: Path
    minutes: float = 120.0
    families: int = 5_000
    size: int = 64
    batch: int = 32
    lr: float = 1e-3
    device: str = "cpu"
    processes: int = 2
    step_limit: int = 0
    seed: int = 0
    save_seconds: float = 120.0
    export_seconds: float = 480.0


def _run(recipe: EditRecipe, stage: Stage) -> None:
    budget = recipe.minutes * 60 * SHARES[stage.name]
    run_stage(
        recipe.out,
        stage,
        budget,
        step_limit=recipe.step_limit,
        save_seconds=recipe.save_seconds,
        export_seconds=recipe.export_seconds,
    )


def _text_side(recipe: EditRecipe) -> TextEncoders:
    folder = recipe.out / "text"
    if not (folder / "text_encoder_2").exists():
        # The garments model's own encoders: what its transformer has learnt to read stays readable.
        reader = PromptClassifier(
            load_text_side(_GARMENTS), recipe.seed, 1e-3, word=worded, heads=HEADS, device=recipe.device
        )
        seen: list[list[float]] = []

        def step(clock: StageClock) -> float:
            loss, accuracies = reader.step(clock.progress, min(1.0, (clock.steps + 1) / 30))
            seen.append(accuracies)
            return loss

        _run(recipe, Stage("text", step, reader.state, reader.restore))
        if seen:
            log.info("text: accuracies, CLIP then T5: %s", np.mean(seen[-50:], axis=0).round(3).tolist())
        reader.side.text_encoder.cpu()
        reader.side.text_encoder_2.cpu()
        save_text_side(reader.side, folder)
    side = load_text_side(folder)
    side.freeze()
    return side


def _latents(recipe: EditRecipe, vae: Autoencoder, pictures: Picture) -> torch.Tensor:
    path = recipe.out / "state" / "latents.pt"
    if not path.exists():
        started = time.monotonic()
        vae = vae.to(recipe.device)
        parts = []
        with torch.no_grad():
            for i in range(0, len(pictures), 256):
                x = vaes.to_tensor(pictures[i : i + 256]).to(recipe.device)
                parts.append(vae.encode(x).latent_dist.mean.half().cpu().contiguous())
        path.parent.mkdir(parents=True, exist_ok=True)
        write_state(path, {"z": torch.cat(parts)})
        vae.to("cpu")
        log.info("encoded %d pictures in %.0f s", len(pictures), time.monotonic() - started)
    z: torch.Tensor = torch.load(path)["z"].float()
    scaled: torch.Tensor = (z - vae.config.shift_factor) * vae.config.scaling_factor
    return scaled.half()


def _batches(recipe: EditRecipe, parts: list[Path], vae: Autoencoder, side: TextEncoders) -> EditBatches:
    started = time.monotonic()
    pairs = Pairs.read(parts)
    log.info("%d pictures, %d pairs after %.0f s", len(pairs.pictures), len(pairs.before), time.monotonic() - started)
    latents = _latents(recipe, vae, pairs.pictures)
    ids = token_ids(side, [str(text) for text in pairs.texts.reshape(-1)])
    log.info("read %d instructions after %.0f s", pairs.texts.size, time.monotonic() - started)
    before, after = (torch.from_numpy(np.repeat(numbers, WORDINGS)) for numbers in (pairs.before, pairs.after))
    return EditBatches(latents, before, after, ids, recipe.device)


def train(recipe: EditRecipe) -> Path:
    """Run or resume the whole recipe; return the pipeline's folder."""
    torch.manual_seed(recipe.seed)
    recipe.out.mkdir(parents=True, exist_ok=True)
    latest = recipe.out / "latest"
    vae = (
        AutoencoderKL.from_pretrained(_GARMENTS / "vae", dtype=torch.float32).eval().requires_grad_(requires_grad=False)
    )
    with ThreadPoolExecutor(1) as beside:
        drawing = beside.submit(
            draw_parts, recipe.out / "data", recipe.families, recipe.size, processes=recipe.processes, seed=recipe.seed
        )
        side = _text_side(recipe)
        parts = drawing.result()
    batches = _batches(recipe, parts, vae, side)
    transformer = FluxTransformer2DModel.from_pretrained(_GARMENTS / "transformer", dtype=torch.float32)
    trainer = EditTrainer(transformer, side, batches, seed=recipe.seed, lr=recipe.lr, device=recipe.device)

    def refresh() -> None:
        export_edits(latest, trainer.averaged(), vae, side, recipe.size)

    def step(clock: StageClock) -> torch.Tensor:
        return trainer.step(clock.progress, recipe.batch)

    _run(recipe, Stage("flow", step, trainer.state, trainer.restore, refresh))
    if not latest.exists():
        refresh()
    return latest


def main() -> None:
    """Read the command line and run the recipe."""
    usual = EditRecipe(Path())
    parser = argparse.ArgumentParser(description="Train the edits model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--families", type=int, default=usual.families)
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--lr", type=float, default=usual.lr)
    parser.add_argument("--device", default=usual.device, help="cpu or cuda")
    parser.add_argument("--processes", type=int, default=usual.processes)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--step-limit", type=int, default=0, help="most steps per stage, to try the recipe out")
    parser.add_argument("--export-seconds", type=float, default=usual.export_seconds)
    parser.add_argument("--save-seconds", type=float, default=usual.save_seconds)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.set_num_threads(given.threads)
    folder = train(
        EditRecipe(
            given.out,
            given.minutes,
            given.families,
            batch=given.batch,
            lr=given.lr,
            device=given.device,
            processes=given.processes,
            seed=given.seed,
            step_limit=given.step_limit,
            export_seconds=given.export_seconds,
            save_seconds=given.save_seconds,
        )
    )
    shutil.rmtree(given.out / ".latest.old", ignore_errors=True)
    log.info("done: %s, %.1f MB", folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6)


if __name__ == "__main__":
    main()
