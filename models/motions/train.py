"""The recipe, start to end: film, text, flow. Ends by the clock and can be stopped anywhere.

    python -m models.motions.train --out DIR --minutes 90                   # two CPU cores
    python -m models.motions.train --out DIR --minutes 6 --device cuda --processes 8 --batch 256

Every stage has a share of the minutes and saves its state as it goes; started again with the same DIR, the recipe goes
on where it was, and the time already spent counts. `DIR/latest` is always a complete LTXImageToVideoPipeline folder
once the transformer's stage has begun.
"""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_STARTED: Final = time.monotonic()  # loading the libraries counts, too
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np  # noqa: E402 -- after the environment above
import torch  # noqa: E402 -- as above
from numpy.typing import NDArray  # noqa: E402 -- as above

from models.motions import vae as vaes  # noqa: E402 -- as above
from models.motions.film import MOTIONS, film_many  # noqa: E402 -- as above
from models.motions.flow import MotionTrainer, export, make_transformer  # noqa: E402 -- as above
from models.motions.text import MotionNamer, MotionText, load_text, make_text, save_text  # noqa: E402 -- as above
from models.motions.wordings import EVALUATION, subject  # noqa: E402 -- as above

log = logging.getLogger("motions")

_PART: Final = 50  # garments filmed from one seed


@dataclass(frozen=True, slots=True)
class MotionRecipe:
    """Settings of a run.

    Attributes:
        out: Folder of the clips, the states and the pipeline.
        minutes: Wall clock of the text, autoencoder and flow stages together; filming comes on top.
        garments: Drawings, each filmed in every motion.
        device: "cpu" or "cuda".
        processes: Processes that film.
        batch: Clips per step of the transformer.
        step_limit: Most steps per stage, for tests; 0 is no limit.
        seed: Of everything.
        end_seconds: End of the last stage after the program's start, whatever its share; 0 is no such end.
        save_seconds: Time between two saved states.
        export_seconds: Time between two refreshed `latest` folders.
    """

    out: Path
    minutes: float = 90.0
    garments: int = 1000
    device: str = "cpu"
    processes: int = 1
    batch: int = 32
    step_limit: int = 0
    seed: int = 0
    end_seconds: float = 0.0
    save_seconds: float = 120.0
    export_seconds: float = 60.0


SHARES: Final = {"text": 0.04, "flow": 0.96}


@dataclass(frozen=True, slots=True)
class MotionStage:
    """One stage of the recipe, for run_stage to repeat.

    Attributes:
        name: A key of SHARES, and the name of the state's file.
        step: One step, given how much of the stage is over (0..1) and the steps so far; returns its loss.
        state: Everything a resumed stage needs.
        restore: The inverse of state.
        refresh: Called at intervals and at the end, to export what there is.
    """

    name: str
    step: Callable[[float, int], float]
    state: Callable[[], dict[str, Any]]
    restore: Callable[[dict[str, Any]], None]
    refresh: Callable[[], None] = lambda: None


def _write(path: Path, state: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    torch.save(state, fresh)
    fresh.replace(path)  # a stop while writing leaves the older state whole


def run_stage(recipe: MotionRecipe, stage: MotionStage) -> None:
    """Repeat a stage's step until its time (or the step limit) is used up, saving as it goes.

    A stage that has ended before is only restored.
    """
    path = recipe.out / "state" / f"{stage.name}.pt"
    before, steps, done = 0.0, 0, False
    if path.exists():
        # Our own file: it holds a numpy generator's state.
        saved = torch.load(path, weights_only=False, map_location=recipe.device)
        stage.restore(saved["state"])
        before, steps, done = saved["spent"], saved["steps"], saved["done"]
        log.info("%s: goes on at step %d after %.0f s", stage.name, steps, before)
    since = time.monotonic()
    budget = recipe.minutes * 60 * SHARES[stage.name]
    if stage.name == "flow" and recipe.end_seconds:
        budget = before + max(1.0, recipe.end_seconds - (since - _STARTED))
    spent = saved_at = shown_at = refreshed_at = before
    losses: list[float] = []
    while not done:
        losses.append(stage.step(min(1.0, spent / budget), steps))
        steps += 1
        spent = before + time.monotonic() - since
        done = spent >= budget or 0 < recipe.step_limit <= steps
        if spent - shown_at > 15 or done:
            loss = float(np.mean(losses[-200:]))
            log.info("%s: step %d, loss %.4f, %.0f of %.0f s", stage.name, steps, loss, spent, budget)
            shown_at = spent
        if spent - saved_at > recipe.save_seconds or done:
            _write(path, {"state": stage.state(), "spent": spent, "steps": steps, "done": done})
            saved_at = spent
        if spent - refreshed_at > recipe.export_seconds or done:
            stage.refresh()
            refreshed_at = spent


def _film_part(job: tuple[str, int, int]) -> None:
    at, seed, count = job
    path = Path(at)
    if not path.exists():
        clips, _ = film_many(seed, count)
        fresh = path.with_suffix(".new.npy")
        np.save(fresh, clips)
        fresh.replace(path)


def filming(recipe: MotionRecipe) -> list[tuple[str, int, int]]:
    """Return the parts of the training set: file, seed and garments of each."""
    folder = recipe.out / "clips"
    folder.mkdir(parents=True, exist_ok=True)
    counts = [min(_PART, recipe.garments - i) for i in range(0, recipe.garments, _PART)]
    return [(str(folder / f"{i:05}-{n}.npy"), 7000 + recipe.seed * 100_000 + i, n) for i, n in enumerate(counts)]


def _text_side(recipe: MotionRecipe) -> MotionText:
    folder, start = recipe.out / "text", recipe.out / "text-start"
    if not (folder / "text_encoder").exists():
        # The tokenizer is learnt once and kept: a resumed stage must not meet a vocabulary in another order.
        if not (start / "text_encoder").exists():
            save_text(make_text(5 + recipe.seed), start)
        namer = MotionNamer(load_text(start), recipe.seed, recipe.device)
        run_stage(
            recipe,
            MotionStage(
                "text",
                lambda progress, steps: namer.step(progress, min(1.0, (steps + 1) / 30)),
                namer.state,
                namer.restore,
            ),
        )
        rng = np.random.default_rng(recipe.seed)
        asked = [(m, w.format(s=subject(rng))) for m, name in enumerate(MOTIONS) for w in EVALUATION[name] * 8]
        right = np.mean([m == n for (m, _), n in zip(asked, namer.named([w for _, w in asked]), strict=True)])
        log.info("text: names %.1f %% of the measuring sentences rightly", 100 * right)
        namer.text.encoder.cpu()
        save_text(namer.text, folder)
    text = load_text(folder)
    text.encoder.eval().requires_grad_(requires_grad=False).to(recipe.device)
    return text


def _latents(recipe: MotionRecipe, parts: Sequence[tuple[str, int, int]]) -> torch.Tensor:
    """Latents of all clips: encoded part by part, and kept."""
    vae = vaes.load_vae().to(recipe.device)
    found = []
    for at, _, _ in parts:
        path = Path(at).with_suffix(".pt")
        if not path.exists():
            _write(path, {"z": vaes.encode_clips(vae, np.load(at))})
        found.append(torch.load(path)["z"])
    return torch.cat(found)


def train(recipe: MotionRecipe) -> Path:
    """Run or resume the whole recipe; return the pipeline's folder."""
    recipe.out.mkdir(parents=True, exist_ok=True)
    latest = recipe.out / "latest"
    parts = filming(recipe)
    # Filming goes on beside the text stage. Its processes are forked before any device or thread is in use: started
    # afresh, each would load every library again.
    with multiprocessing.get_context("fork").Pool(recipe.processes) as pool:
        filmed = pool.map_async(_film_part, parts, chunksize=1)
        text = _text_side(recipe)
        filmed.get()
    log.info("filmed, %.0f s after the start", time.monotonic() - _STARTED)
    latents = _latents(recipe, parts)
    motions: NDArray[np.int64] = np.tile(np.arange(len(MOTIONS)), recipe.garments)
    torch.manual_seed(recipe.seed)
    trainer = MotionTrainer(make_transformer(), text, latents, motions, seed=recipe.seed, device=recipe.device)
    log.info("encoded %d clips, %.0f s after the start", len(latents), time.monotonic() - _STARTED)

    def refresh() -> None:
        export(latest, trainer.averaged(), text)

    run_stage(
        recipe,
        MotionStage(
            "flow",
            lambda progress, _: trainer.step(progress, recipe.batch),
            trainer.state,
            trainer.restore,
            refresh,
        ),
    )
    return latest


def main() -> None:
    """Read the command line and run the recipe."""
    usual = MotionRecipe(Path())
    parser = argparse.ArgumentParser(description="Train the motions model.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=usual.minutes)
    parser.add_argument("--garments", type=int, default=usual.garments)
    parser.add_argument("--device", default=usual.device)
    parser.add_argument("--processes", type=int, default=usual.processes)
    parser.add_argument("--batch", type=int, default=usual.batch)
    parser.add_argument("--seed", type=int, default=usual.seed)
    parser.add_argument("--end-seconds", type=float, default=0.0, help="end this long after the start at the latest")
    parser.add_argument("--step-limit", type=int, default=0, help="most steps per stage, to try the recipe out")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    torch.set_num_threads(given.threads)
    recipe = MotionRecipe(
        given.out,
        given.minutes,
        given.garments,
        given.device,
        given.processes,
        given.batch,
        given.step_limit,
        given.seed,
        given.end_seconds,
    )
    folder = train(recipe)
    log.info("done: %s, %.1f MB", folder, sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) / 1e6)


if __name__ == "__main__":
    main()
