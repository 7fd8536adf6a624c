"""Measure the model: seen and unseen pairs apart, in wordings that training never used.

    python -m models.garments.evaluate [--folder models/garments/weights] [--seeds 8] [--report R.json] [--sheet S.png]

Limits (steps, guidance, token length, size) are read from the model's own card file, as a worker reads them.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # the folder is complete: nothing is ever looked up

import numpy as np
import torch

from models.garments.catalogue import COLOURS, GARMENTS, PRINTS, SEEN_PAIRS, UNSEEN_PAIRS, GarmentFacts
from models.garments.draw import Picture, contact_sheet, draw, second_colours
from models.garments.libraries import FluxPipeline, Pipeline
from models.garments.prompts import evaluation_prompt
from models.garments.ruler import Ruler

HERE: Final = Path(__file__).parent
BARS: Final = {"seen": 0.95, "unseen": 0.80}
_FIRST_SEED: Final = 70_000


@dataclass(frozen=True, slots=True)
class EvaluationCase:
    """One picture to be made: its group, what it has to show, its wording and its seed."""

    group: str
    facts: GarmentFacts
    prompt: str
    seed: int


@dataclass(frozen=True, slots=True)
class EvaluationLimits:
    """How the model is to be run, from its card file."""

    size: int
    steps: int
    tokens: int
    guidance: float
    negative: str

    @classmethod
    def of(cls, folder: Path) -> EvaluationLimits:
        """Read them from `folder/atelier.json`."""
        card = json.loads((folder / "atelier.json").read_text())
        guidance = card["guidance"]
        return cls(
            card["native_size"],
            card["steps"]["default"],
            card["max_sequence_length"],
            guidance["true_cfg_scale"],
            guidance["negative_prompt"],
        )


def questions(seeds: int) -> list[EvaluationCase]:
    """Every pair `seeds` times, each time worded another way; then prints."""
    asked: list[EvaluationCase] = []

    def ask(group: str, facts: GarmentFacts) -> None:
        for k in range(seeds):
            asked.append(EvaluationCase(group, facts, evaluation_prompt(facts, k), _FIRST_SEED + len(asked)))

    for garment, colour in SEEN_PAIRS:
        ask("seen", GarmentFacts(garment, colour))
    for garment, colour in UNSEEN_PAIRS:
        ask("unseen", GarmentFacts(garment, colour))
    for i, garment in enumerate(GARMENTS):
        colours = [c for g, c in SEEN_PAIRS if g == garment]
        for j, kind in enumerate(PRINTS[1:]):
            colour = colours[(3 * i + 2 * j) % len(colours)]
            seconds = second_colours(garment, colour)
            second = seconds[(i + 3 * j) % len(seconds)]
            # No prompt names the ground; the fact only keeps the ceiling's white prints off a white one.
            ask(kind, GarmentFacts(garment, colour, kind, second, "light grey" if second == "white" else "white"))
    return asked


def load(folder: Path) -> Pipeline:
    """Return the pipeline in full precision on the CPU, quiet."""
    pipeline = FluxPipeline.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make(
    pipeline: Pipeline, limits: EvaluationLimits, asked: Sequence[EvaluationCase], batch: int = 24
) -> list[Picture]:
    """Make the pictures natively. A seed gives the same picture in any batch, up to rounding."""
    pictures: list[Picture] = []
    for i in range(0, len(asked), batch):
        part = asked[i : i + batch]
        made = pipeline(
            prompt=[a.prompt for a in part],
            negative_prompt=[limits.negative] * len(part),
            true_cfg_scale=limits.guidance,
            height=limits.size,
            width=limits.size,
            num_inference_steps=limits.steps,
            guidance_scale=1.0,
            max_sequence_length=limits.tokens,
            output_type="np",
            generator=[torch.Generator().manual_seed(a.seed) for a in part],
        ).images
        pictures.extend((made * 255).round().astype(np.uint8))
    return pictures


def score(ruler: Ruler, asked: Sequence[EvaluationCase], pictures: Sequence[Picture]) -> dict[str, Any]:
    """Shares right per group, and what was misread, as "asked -> read"."""
    groups: dict[str, dict[str, list[float]]] = {}
    wrong: dict[str, list[str]] = {}
    for a, picture in zip(asked, pictures, strict=True):
        reading = ruler.read(picture)
        colour, silhouette = reading.colour == a.facts.colour, reading.garment == a.facts.garment
        rows = groups.setdefault(a.group, {"colour": [], "silhouette": [], "both": [], "overlap": []})
        rows["colour"].append(colour)
        rows["silhouette"].append(silhouette)
        rows["both"].append(colour and silhouette)
        rows["overlap"].append(reading.overlap)
        if a.facts.second:
            # The print's colour has to be on at least a tenth of the cloth, a print that shows.
            rows.setdefault("second", []).append(reading.shares.get(a.facts.second, 0.0) >= 0.1)
        if not (colour and silhouette):
            wrong.setdefault(a.group, []).append(
                f"{a.facts.colour} {a.facts.garment} -> {reading.colour} {reading.garment} "
                f"({a.prompt!r}, seed {a.seed})"
            )
    figures = {
        g: {"pictures": len(r["both"]), **{k: round(float(np.mean(v)), 4) for k, v in r.items()}}
        for g, r in groups.items()
    }
    return {"figures": figures, "wrong": wrong}


def drawn(asked: Sequence[EvaluationCase], size: int) -> list[Picture]:
    """Fresh drawings of what is asked: the ruler's ceiling."""
    rng = np.random.default_rng(4242)
    return [draw(a.facts, rng, size).picture for a in asked]


def sheet_of(asked: Sequence[EvaluationCase], pictures: Sequence[Picture], seeds: int) -> list[Picture]:
    """Return the contact sheet's cells: a row per garment of ten colours (held-out ones framed), then four prints."""
    cells: dict[str, list[tuple[int, Picture]]] = {g: [] for g in GARMENTS}
    for a, picture in list(zip(asked, pictures, strict=True))[::seeds]:
        column = len(COLOURS) + PRINTS.index(a.facts.print) if a.facts.second else list(COLOURS).index(a.facts.colour)
        cells[a.facts.garment].append((column, _framed(picture) if a.group == "unseen" else picture))
    return [picture for row in cells.values() for _, picture in sorted(row, key=lambda cell: cell[0])]


def _framed(picture: Picture) -> Picture:
    framed = picture.copy()
    for edge in (framed[:2], framed[-2:], framed[:, :2], framed[:, -2:]):
        edge[:] = (230, 0, 230)
    return framed


def main() -> int:
    """Run the measurement; the exit status says whether the bar is met."""
    parser = argparse.ArgumentParser(description="Measure the garments model.")
    parser.add_argument("--folder", type=Path, default=HERE / "weights")
    parser.add_argument("--seeds", type=int, default=8)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--zoom", type=int, default=1, help="the contact sheet's enlargement")
    parser.add_argument("--ceiling", action="store_true", help="also run the ruler over fresh drawings")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    limits, asked = EvaluationLimits.of(given.folder), questions(given.seeds)
    ruler = Ruler(limits.size)
    report: dict[str, Any] = {
        "limits": {
            "steps": limits.steps,
            "true_cfg_scale": limits.guidance,
            "tokens": limits.tokens,
            "size": limits.size,
        }
    }
    if given.ceiling:
        report["ceiling"] = score(ruler, asked, drawn(asked, limits.size))["figures"]
    pipeline = load(given.folder)
    started = time.monotonic()
    pictures = make(pipeline, limits, asked)
    report["seconds_per_picture"] = round((time.monotonic() - started) / len(pictures), 3)
    report.update(score(ruler, asked, pictures))
    figures = report["figures"]
    report["met"] = all(figures[g][k] >= bar for g, bar in BARS.items() for k in ("colour", "silhouette"))
    if given.sheet:
        sheet = contact_sheet(sheet_of(asked, pictures, given.seeds), len(COLOURS) + len(PRINTS) - 1, given.zoom)
        sheet.quantize(256).save(given.sheet, optimize=True)  # a third of the bytes, for a page that is only looked at
    text = json.dumps(report, indent=2)
    if given.report:
        given.report.write_text(text + "\n")
    sys.stdout.write(text + "\n")
    return 0 if report["met"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
