"""Measure the model: seen and held-out changes apart, in wordings that training never used.

    python -m models.edits.evaluate [--folder models/edits/weights] [--seeds 8] [--report R.json] [--sheet S.png]

A changed colour is read by the garments' ruler; its silhouette is compared with that of the picture before. Everything
else is compared with a drawing of what was asked, made from the same streams as the picture before.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the folder is complete: nothing is ever looked up

import numpy as np
import torch
from numpy.typing import NDArray

from models.edits.libraries import FluxKontextPipeline
from models.edits.scenes import LONG, GarmentScene, held_out_scenes
from models.edits.wording import measured
from models.garments.catalogue import BACKGROUNDS, GARMENTS, PRINTS, SEEN_PAIRS, GarmentFacts
from models.garments.draw import Picture, contact_sheet, second_colours
from models.garments.evaluate import EvaluationLimits
from models.garments.libraries import Pipeline
from models.garments.ruler import Mask, Ruler, cloth_mask, to_lab

HERE: Final = Path(__file__).parent
BARS: Final = {"colour": 0.9, "kept": 0.85}
_FIRST_SEED: Final = 90_000


@dataclass(frozen=True, slots=True)
class EditCase:
    """One edit to be made.

    Attributes:
        group: What it is counted with.
        before: The scene that is edited.
        after: What is asked for.
        prompt: The instruction.
        seed: Of the noise.
        drawn: Seed of the drawing before.
    """

    group: str
    before: GarmentScene
    after: GarmentScene
    prompt: str
    seed: int
    drawn: int

    def picture(self) -> Picture:
        """Draw the picture that is edited."""
        return self.before.draw(self.drawn).picture

    def truth(self) -> Picture:
        """Draw what is asked for."""
        return self.after.draw(self.drawn).picture


class _Questions:
    """Collects cases: each one gets the next seed, and each repeat of a change another wording."""

    def __init__(self) -> None:
        self.asked: list[EditCase] = []

    def ask(self, group: str, before: GarmentScene, after: GarmentScene, index: int) -> None:
        at = len(self.asked)
        prompt = measured(before, after, index)
        self.asked.append(EditCase(group, before, after, prompt, _FIRST_SEED + at, 500_000 + at))


def _plain(garment: str, at: int) -> GarmentScene:
    """Return a plain scene of a garment in a seen colour, which `at` chooses."""
    colours = [c for g, c in SEEN_PAIRS if g == garment]
    grounds = tuple(BACKGROUNDS)
    return GarmentScene(GarmentFacts(garment, colours[at % len(colours)], background=grounds[at % len(grounds)]))


def questions(seeds: int) -> list[EditCase]:
    """Every held-out change `seeds` times, each time worded another way; then the other kinds."""
    q = _Questions()
    for k in range(seeds):
        for before, after in held_out_scenes(k):
            q.ask("held out", before, after, k)
    _ask_seen(q)
    for i, garment in enumerate(GARMENTS):
        _ask_prints(q, i, garment)
        for j, other in enumerate(g for g in GARMENTS if g != garment):
            colours = [c for g, c in SEEN_PAIRS if g == garment and (other, c) in SEEN_PAIRS]
            before = GarmentScene(GarmentFacts(garment, colours[(i + j) % len(colours)]))
            q.ask("garment", before, GarmentScene(replace(before.facts, garment=other)), i + j)
        for j, ground in enumerate(BACKGROUNDS):
            before = _plain(garment, i + j + 1)
            if before.facts.background != ground:
                q.ask("ground", before, GarmentScene(replace(before.facts, background=ground)), i + j)
    for garment in sorted(LONG):
        for j in range(10):
            short = _plain(garment, j)
            q.ask("sleeves", short, replace(short, long=True), j)
            q.ask("sleeves", replace(short, long=True), short, j)
    return q.asked


def _ask_seen(q: _Questions) -> None:
    for i, (garment, colour) in enumerate(SEEN_PAIRS):
        sources = [c for g, c in SEEN_PAIRS if g == garment and c != colour]
        before = _plain(garment, 0)
        for k in range(2):
            source = replace(before, facts=replace(before.facts, colour=sources[(i + 3 * k) % len(sources)]))
            q.ask("seen", source, replace(source, facts=replace(source.facts, colour=colour)), i + k)


def _ask_prints(q: _Questions, i: int, garment: str) -> None:
    for j, kind in enumerate(PRINTS[1:]):
        for k in range(2):
            before = _plain(garment, 3 * i + 2 * j + k)
            seconds = [c for c in second_colours(garment, before.facts.colour) if c != "white"]
            printed = GarmentScene(replace(before.facts, print=kind, second=seconds[(i + 3 * j + k) % len(seconds)]))
            q.ask(kind, before, printed, i + j + k)
            q.ask("plain", printed, before, i + j + k)


def thinned(asked: Sequence[EditCase], every: int) -> list[EditCase]:
    """Keep the held-out changes, and every n-th edit of each other kind."""
    counts: dict[str, int] = {}
    kept: list[EditCase] = []
    for case in asked:
        at = counts.get(case.group, 0)
        counts[case.group] = at + 1
        if case.group == "held out" or at % every == 0:
            kept.append(case)
    return kept


def load(folder: Path) -> Pipeline:
    """Return the pipeline in full precision on the CPU, quiet."""
    pipeline = FluxKontextPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@torch.no_grad()
def _latents(pipeline: Pipeline, pictures: Sequence[Picture]) -> torch.Tensor:
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).float() / 127.5 - 1
    config = pipeline.vae.config
    z: torch.Tensor = (pipeline.vae.encode(x).latent_dist.mode() - config.shift_factor) * config.scaling_factor
    return z


def make(pipeline: Pipeline, limits: EvaluationLimits, asked: Sequence[EditCase], batch: int = 24) -> list[Picture]:
    """Make the edits natively. A seed gives the same picture in any batch, up to rounding."""
    made: list[Picture] = []
    for at in range(0, len(asked), batch):
        part = asked[at : at + batch]
        images = pipeline(
            prompt=[case.prompt for case in part],
            negative_prompt=[limits.negative] * len(part),
            true_cfg_scale=limits.guidance,
            image=_latents(pipeline, [case.picture() for case in part]),
            height=limits.size,
            width=limits.size,
            max_area=limits.size**2,
            num_inference_steps=limits.steps,
            guidance_scale=1.0,
            max_sequence_length=limits.tokens,
            output_type="np",
            generator=[torch.Generator().manual_seed(case.seed) for case in part],
        ).images
        made.extend((images * 255).round().astype(np.uint8))
    return made


def overlap(first: Mask, second: Mask) -> float:
    """Intersection over union of two masks."""
    return float((first & second).sum() / max(1, (first | second).sum()))


def _ground_of(picture: Picture) -> NDArray[np.float64]:
    """Median colour of the border in CIELAB."""
    edge = np.concatenate([picture[:2].reshape(-1, 3), picture[-2:].reshape(-1, 3)])
    median: NDArray[np.float64] = np.median(to_lab(edge), 0)
    return median


def _reached(ruler: Ruler, case: EditCase, before: Picture, picture: Picture) -> dict[str, float]:
    """Measures of one edit: whether the asked thing is there, and whether what was to stay has stayed."""
    reading = ruler.read(picture)
    mask, mask_before = cloth_mask(picture), cloth_mask(before)
    facts = case.after.facts
    kept = overlap(mask, mask_before)
    if case.group in ("held out", "seen"):
        return {"reached": reading.colour == facts.colour, "kept": kept, "kept_enough": kept >= BARS["kept"]}
    if case.group in PRINTS and case.group != "plain":
        there = reading.shares.get(facts.second, 0.0) >= 0.1
        return {"reached": there, "colour": reading.colour == facts.colour, "kept": kept}
    if case.group == "plain":
        gone = reading.shares.get(case.before.facts.second, 0.0) < 0.1
        return {"reached": gone, "colour": reading.colour == facts.colour, "kept": kept}
    if case.group == "garment":
        return {"reached": reading.garment == facts.garment, "colour": reading.colour == facts.colour}
    if case.group == "sleeves":
        truth = cloth_mask(case.truth())
        closer = overlap(mask, truth) > overlap(mask_before, truth)
        return {"reached": closer, "colour": reading.colour == facts.colour, "kept": overlap(mask, truth)}
    distances = {
        name: float(np.linalg.norm(_ground_of(picture) - to_lab(np.array([[rgb]], np.uint8))[0, 0]))
        for name, rgb in BACKGROUNDS.items()
    }
    nearest = min(distances, key=lambda name: distances[name])
    return {"reached": nearest == facts.background, "colour": reading.colour == facts.colour, "kept": kept}


def score(ruler: Ruler, asked: Sequence[EditCase], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Shares right per group, and what was misread, as "asked -> read"."""
    groups: dict[str, list[dict[str, float]]] = {}
    wrong: dict[str, list[str]] = {}
    for case, picture in zip(asked, pictures, strict=True):
        row = _reached(ruler, case, case.picture(), picture)
        groups.setdefault(case.group, []).append(row)
        if not row["reached"]:
            reading = ruler.read(picture)
            asked_for = f"{case.before.facts.colour} {case.before.facts.garment}, {case.prompt!r}, seed {case.seed}"
            wrong.setdefault(case.group, []).append(f"{asked_for} -> {reading.colour} {reading.garment}")
    figures = {
        group: {
            "edits": len(rows),
            **{name: round(float(np.mean([row[name] for row in rows])), 4) for name in rows[0]},
        }
        for group, rows in groups.items()
    }
    return {"figures": figures, "wrong": wrong}


def sheet_of(asked: Sequence[EditCase], pictures: Sequence[Picture]) -> list[Picture]:
    """Return the contact sheet's cells: pairs of before and after, six pairs a row, a row or more per group."""
    cells: list[Picture] = []
    groups: dict[str, list[tuple[EditCase, Picture]]] = {}
    for case, picture in zip(asked, pictures, strict=True):
        groups.setdefault(case.group, []).append((case, picture))
    for group, rows in groups.items():
        wanted = 18 if group == "held out" else 6
        step = max(1, len(rows) // wanted)
        for case, picture in rows[::step][:wanted] if group != "held out" else rows[:18]:
            cells += [case.picture(), picture]
    return cells


def main() -> int:
    """Run the measurement; the exit status says whether the bar is met."""
    parser = argparse.ArgumentParser(description="Measure the edits model.")
    parser.add_argument("--folder", type=Path, default=HERE / "weights")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--guidance", type=float, help="instead of the card's")
    parser.add_argument("--every", type=int, default=1, help="only every n-th edit of the kinds without a bar")
    parser.add_argument("--groups", default="", help="only these, separated by commas")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--zoom", type=int, default=1, help="the contact sheet's enlargement")
    parser.add_argument("--ceiling", action="store_true", help="also run the ruler over drawings of what is asked")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    limits, asked = EvaluationLimits.of(given.folder), thinned(questions(given.seeds), given.every)
    if given.guidance is not None:
        limits = replace(limits, guidance=given.guidance)
    if given.groups:
        asked = [case for case in asked if case.group in given.groups.split(",")]
    report = measure(given.folder, limits, asked, ceiling=given.ceiling, show=_shower(given.sheet, given.zoom))
    text = json.dumps(report, indent=2)
    if given.report:
        given.report.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0 if report["met"] else 1


def _shower(path: Path | None, zoom: int) -> Callable[[Sequence[EditCase], Sequence[Picture]], None]:
    def show(asked: Sequence[EditCase], pictures: Sequence[Picture]) -> None:
        if path is not None:
            contact_sheet(sheet_of(asked, pictures), 12, zoom).quantize(256).save(path, optimize=True)

    return show


def measure(
    folder: Path,
    limits: EvaluationLimits,
    asked: Sequence[EditCase],
    *,
    ceiling: bool,
    show: Callable[[Sequence[EditCase], Sequence[Picture]], None],
) -> dict[str, Any]:
    """Make all edits and read them.

    Args:
        folder: The pipeline's folder.
        limits: How it is run.
        asked: The edits.
        ceiling: Whether to read drawings of what is asked too.
        show: Called with the cases and their pictures.
    """
    ruler = Ruler(limits.size)
    report: dict[str, Any] = {
        "limits": {
            "steps": limits.steps,
            "true_cfg_scale": limits.guidance,
            "tokens": limits.tokens,
            "size": limits.size,
        }
    }
    if ceiling:
        report["ceiling"] = score(ruler, asked, [case.truth() for case in asked])["figures"]
    pipeline = load(folder)
    started = time.monotonic()
    pictures = make(pipeline, limits, asked)
    report["seconds_per_picture"] = round((time.monotonic() - started) / len(pictures), 3)
    report.update(score(ruler, asked, pictures))
    held = report["figures"].get("held out")
    report["met"] = held is not None and held["reached"] >= BARS["colour"] and held["kept"] >= BARS["kept"]
    show(asked, pictures)
    return report


if __name__ == "__main__":
    raise SystemExit(main())
