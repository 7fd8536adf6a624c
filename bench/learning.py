"""What an adapter learns: train on eight drawings of a thing that the shipped model has never seen, draw, measure.

    python -m bench.learning [--steps 1000] [--report R.json] [--sheet S.png]

A product (a poncho with diamonds) and a style (black and white) are trained with the defaults of a training. Pictures
of 16 seeds are compared, with and without: distance to held-out drawings, and 40 other prompts' colour and outline.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image, ImageDraw

from modelkit.adapters import Adapters
from modelkit.card import read_card
from modelkit.device import Device
from modelkit.requests import AdapterFile
from modelkit.training.dataset import Dataset, Example
from modelkit.training.plan import TrainingPlan
from modelkit.training.profile import fitted
from modelkit.training.trainer import train
from modelkit.training.watching import Sample, StepReport, Stop, ValidationPoint
from models.garments.catalogue import SEEN_PAIRS, GarmentFacts
from models.garments.closeness import Closeness, chance, colourfulness
from models.garments.draw import Drawing, Picture
from models.garments.evaluate import HERE, EvaluationCase, EvaluationLimits, load, make, score
from models.garments.novel import STYLE_TRIGGER, TRIGGER, grey, held_out, product_drawing, style_drawing
from models.garments.prompts import evaluation_prompt
from models.garments.ruler import Ruler

WEIGHTS: Final = HERE / "weights"
SEEDS: Final = 16
PICTURES: Final = 8
OTHERS: Final = 40
_SHOWN: Final = 8
_NOBODY: Final = GarmentFacts("coat", "purple")  # facts of a prompt whose picture no fact is read from


@dataclass
class Quiet:
    """Watches a training without a word; prints each measurement of its loss."""

    seconds: float = 0.0

    def stopping(self) -> Stop | None:
        """Let it run."""
        return None

    def wanted_samples(self) -> Sequence[str]:
        """Want none."""
        return ()

    def cached(self, done: int, total: int) -> None:
        """Take no note."""

    def stepped(self, report: StepReport) -> None:
        """Take no note."""

    def validated(self, points: Sequence[ValidationPoint]) -> None:
        """Print the losses."""
        print(f"step {points[0].step}: loss {' '.join(f'{point.loss:.3f}' for point in points)}", flush=True)

    def sampled(self, sample: Sample) -> None:
        """Take no note."""

    def kept_state(self, step: int, folder: Path) -> None:
        """Take no note."""

    def kept_save(self, step: int, file: Path) -> None:
        """Take no note."""

    def noted(self, line: str) -> None:
        """Print it."""
        print(line, flush=True)


def learn(folder: Path, trigger: str, draw: Callable[[int, int], Drawing], steps: int, rate: float = 1e-4) -> Path:
    """Train an adapter on drawings, with what a training of the API asks for by default; return its file."""
    done = folder / "run" / "adapter.safetensors"
    if done.is_file():
        return done
    folder.mkdir(parents=True)
    examples = []
    for number in range(PICTURES):
        path = folder / f"{number}.png"
        Image.fromarray(draw(number, 256).picture).save(path)
        examples.append(Example(path, "[trigger]", (64, 64)))
    asked = TrainingPlan(str(WEIGHTS), trigger, steps=steps, learning_rate=rate, preservation="output")
    plan = fitted(asked, read_card(WEIGHTS))
    dataset = Dataset.of(examples)
    return train(plan, dataset, folder=folder / "run", resume=None, watcher=Quiet(), device=Device("cpu", 1)).file


def asked(prompt: str) -> list[EvaluationCase]:
    """Return one prompt under all seeds."""
    return [EvaluationCase("new", _NOBODY, prompt, seed) for seed in range(SEEDS)]


def others() -> list[EvaluationCase]:
    """Return prompts of known garments in measuring words, none of which any training used."""
    pairs = np.random.default_rng(5).permutation(len(SEEN_PAIRS))[:OTHERS]
    facts = [GarmentFacts(*SEEN_PAIRS[place]) for place in pairs]
    return [EvaluationCase("others", each, evaluation_prompt(each, k), 5000 + k) for k, each in enumerate(facts)]


@dataclass(frozen=True, slots=True)
class Drawn:
    """Pictures of the seeds and the other prompts.

    Attributes:
        plain: Of the product's prompt, without an adapter.
        product: The same with the product's.
        both: Of the prompt that names both, with both adapters.
        product_alone: Of that prompt, with the product's alone.
        style_alone: Of that prompt, with the style's alone.
        known: Of the other prompts, without.
        known_after: The same with the product's adapter.
    """

    plain: list[Picture]
    product: list[Picture]
    both: list[Picture]
    product_alone: list[Picture]
    style_alone: list[Picture]
    known: list[Picture]
    known_after: list[Picture]


def drawn(product: Path, style: Path) -> Drawn:
    """Draw everything, through the adapters of the serving code."""
    pipe, limits = load(WEIGHTS), EvaluationLimits.of(WEIGHTS)
    adapters = Adapters(pipe)
    alone, together = f"a photo of {TRIGGER}", f"a photo of {TRIGGER}, {STYLE_TRIGGER}"

    def with_these(*files: Path, of: list[EvaluationCase]) -> list[Picture]:
        adapters.use([AdapterFile(file, 1.0) for file in files])
        return make(pipe, limits, of, 20)

    return Drawn(
        plain=with_these(of=asked(alone)),
        product=with_these(product, of=asked(alone)),
        both=with_these(product, style, of=asked(together)),
        product_alone=with_these(product, of=asked(together)),
        style_alone=with_these(style, of=asked(together)),
        known=with_these(of=others()),
        known_after=with_these(product, of=others()),
    )


def figures(made: Drawn) -> dict[str, Any]:
    """Measure the pictures."""
    closeness, ruler = Closeness(held_out()), Ruler(64)
    # With the style, the product has no colours: its cut and print are compared without them.
    colourless = Closeness([grey(picture) for picture in held_out()])

    def apart(pictures: Sequence[Picture]) -> list[float]:
        return [closeness.distance(picture) for picture in pictures]

    def apart_in_grey(pictures: Sequence[Picture]) -> list[float]:
        return [colourless.distance(grey(picture)) for picture in pictures]

    def colour(pictures: Sequence[Picture]) -> list[float]:
        return [colourfulness(picture) for picture in pictures]

    def gain(before: list[float], after: list[float]) -> dict[str, Any]:
        closer = sum(b > a for b, a in zip(before, after, strict=True))
        means = {"without": round(float(np.mean(before)), 1), "with": round(float(np.mean(after)), 1)}
        return {**means, "closer": closer, "of": len(before), "chance": chance(before, after)}

    def right(pictures: Sequence[Picture]) -> dict[str, float]:
        read = score(ruler, others(), pictures)["figures"]["others"]
        return {name: read[name] for name in ("colour", "silhouette")}

    return {
        "other drawings of the thing": round(float(np.mean(apart([product_drawing(k).picture for k in range(8)]))), 1),
        "product": gain(apart(made.plain), apart(made.product)),
        "others": {"without": right(made.known), "with": right(made.known_after)},
        "both": {
            "product's effect": gain(apart_in_grey(made.style_alone), apart_in_grey(made.both)),
            "style's effect": gain(colour(made.product_alone), colour(made.both)),
        },
    }


def sheet(made: Drawn) -> Image.Image:
    """Lay the pictures out, a row each, enlarged."""
    rows: list[tuple[str, Sequence[Picture]]] = [
        ("eight pictures", [product_drawing(k).picture for k in range(PICTURES)]),
        ("before", made.plain),
        ("after", made.product),
        ("others, before", made.known),
        ("others, after", made.known_after),
        ("a style", [style_drawing(k).picture for k in range(PICTURES)]),
        ("both", made.both),
    ]
    side, margin, label = 96, 2, 96
    image = Image.new("RGB", (label + _SHOWN * (side + margin), len(rows) * (side + margin)), "white")
    pen = ImageDraw.Draw(image)
    for y, (name, pictures) in enumerate(rows):
        pen.text((4, y * (side + margin) + side // 2 - 6), name, fill="black")
        for x, picture in enumerate(pictures[:_SHOWN]):
            large = Image.fromarray(picture).resize((side, side), Image.Resampling.LANCZOS)
            image.paste(large, (label + x * (side + margin), y * (side + margin)))
    return image


def main() -> None:
    """Train, draw, measure; print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Measure what an adapter learns.")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--folder", type=Path, help="keeps the trainings; an adapter that is there is taken")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, seconds = given.folder or Path(name), {}
        began, worked = time.monotonic(), time.process_time()
        product = learn(folder / "product", TRIGGER, product_drawing, given.steps)
        seconds["training, by the clock"] = round(time.monotonic() - began)
        seconds["training, of the processor"] = round(time.process_time() - worked)
        made = drawn(product, learn(folder / "style", STYLE_TRIGGER, style_drawing, given.steps))
    text = json.dumps({"steps": given.steps, "seconds": seconds, **figures(made)}, indent=2)
    print(text)
    if given.report:
        given.report.write_text(text + "\n")
    if given.sheet:
        sheet(made).quantize(256).save(given.sheet, optimize=True)


if __name__ == "__main__":
    main()
