"""Measure the model: the first frame, the asked motion, the ground's flicker, on garments that training never saw.

    python -m models.motions.evaluate --report report.json --sheet sheet.png

The garments are those of the sixteen pairs of garment and colour that the garments model holds out, each in every
motion, worded as training never words it. `--ceiling` measures drawn clips of the same garments with the same ruler.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from models.garments.catalogue import HELD_OUT, GarmentFacts
from models.garments.draw import contact_sheet, draw
from models.motions import vae as vaes
from models.motions.film import FRAMES, MOTIONS, SIZE, Clip, film, framing
from models.motions.flow import CARD, sample
from models.motions.libraries import LTXVideoTransformer3DModel
from models.motions.ruler import flicker, motion_of, psnr
from models.motions.text import MotionText, load_text
from models.motions.wordings import EVALUATION, subject

log = logging.getLogger("motions")

# Bounds that the model is to keep, and that a report says whether it does.
FIRST_FRAME_DB: Final = 24.0
ASKED_SHARE: Final = 0.9
FLICKER_LEVELS: Final = 3.0
_CFG_SCALE: Final = 0.5  # what a task has that names none: a share of the card's guidance


def held_out(seed: int, each: int) -> tuple[Clip, list[str], list[str]]:
    """Film every held-out pair `each` times in every motion.

    Returns:
        Drawn clips (n, f, h, w, 3), their motions, and prompts that ask for them.
    """
    rng = np.random.default_rng(seed)
    clips: list[Clip] = []
    motions: list[str] = []
    prompts: list[str] = []
    for garment, colour in sorted(HELD_OUT):
        for _ in range(each):
            drawing = draw(GarmentFacts(garment, colour), rng, 2 * SIZE)
            at = framing(rng)
            for motion in MOTIONS:
                clips.append(film(drawing, motion, at))
                motions.append(motion)
                wordings = EVALUATION[motion]
                prompts.append(wordings[int(rng.integers(len(wordings)))].format(s=subject(rng)))
    return np.stack(clips), motions, prompts


def made(weights: Path, first: np.ndarray[Any, Any], prompts: list[str], guidance: float, steps: int) -> Clip:
    """Have the model of a folder make clips (n, f, h, w, 3) of first frames (n, h, w, 3) and prompts."""
    model = LTXVideoTransformer3DModel.from_pretrained(weights / "transformer", dtype=torch.float32).eval()
    vae, text = vaes.load_vae(weights / "vae"), load_text(weights)
    text.encoder.eval()
    opening = vaes.encode(vae, first).float()
    clips: list[Clip] = []
    for i in range(0, len(prompts), 24):
        some = prompts[i : i + 24]
        noise = torch.randn(
            (len(some), opening.shape[1], FRAMES, *opening.shape[2:]), generator=torch.Generator().manual_seed(i)
        )
        latents = sample(
            model,
            text.encode(some, "cpu"),
            opening[i : i + 24],
            noise,
            steps=steps,
            guidance=guidance,
            unasked=_nothing(text, len(some)),
        )
        clips.append(vaes.decode_clips(vae, latents))
    return np.concatenate(clips)


def _nothing(text: MotionText, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    words, mask = text.encode([""], "cpu")
    return words.expand(count, -1, -1), mask.expand(count, -1)


def measure(clips: Clip, first: np.ndarray[Any, Any], motions: list[str]) -> dict[str, Any]:
    """Return the figures of some clips whose motions were asked for."""
    found = [motion_of(clip) for clip in clips]
    right = np.array([a == b for a, b in zip(found, motions, strict=True)])
    near = [psnr(clip[0], picture) for clip, picture in zip(clips, first, strict=True)]
    shaking = [flicker(clip) for clip in clips]
    return {
        "clips": len(clips),
        "asked_share": round(float(right.mean()), 4),
        "asked_share_by_motion": {
            name: round(float(right[[m == name for m in motions]].mean()), 4) for name in MOTIONS
        },
        "read_as": {
            name: sorted({str(f) for f, m in zip(found, motions, strict=True) if m == name and f != name})
            for name in MOTIONS
        },
        "first_frame_db": {"mean": round(float(np.mean(near)), 2), "least": round(float(np.min(near)), 2)},
        "flicker_levels": {"mean": round(float(np.mean(shaking)), 2), "most": round(float(np.max(shaking)), 2)},
    }


def main() -> None:
    """Read the command line, measure, and write the report and the sheet."""
    parser = argparse.ArgumentParser(description="Measure the motions model.")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parent / "weights")
    parser.add_argument("--each", type=int, default=2, help="clips of each held-out pair and motion")
    parser.add_argument("--guidance", type=float, default=_CFG_SCALE * CARD["guidance"]["scale_default"])
    parser.add_argument("--steps", type=int, default=CARD["steps"]["default"])
    parser.add_argument("--seed", type=int, default=4242)
    parser.add_argument("--ceiling", action="store_true", help="measure the drawn clips too")
    parser.add_argument("--report", type=Path)
    parser.add_argument("--sheet", type=Path)
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
    drawn, motions, prompts = held_out(given.seed, given.each)
    first = drawn[:, 0]
    began = time.monotonic()
    clips = made(given.weights, first, prompts, given.guidance, given.steps)
    report = measure(clips, first, motions)
    report["settings"] = {"guidance": given.guidance, "steps": given.steps, "seed": given.seed}
    report["seconds_per_clip"] = round((time.monotonic() - began) / len(clips), 3)
    report["bounds"] = {
        "first_frame_db": FIRST_FRAME_DB,
        "asked_share": ASKED_SHARE,
        "flicker_levels": FLICKER_LEVELS,
        "kept": bool(
            report["first_frame_db"]["mean"] >= FIRST_FRAME_DB
            and report["asked_share"] >= ASKED_SHARE
            and report["flicker_levels"]["mean"] <= FLICKER_LEVELS
        ),
    }
    if given.ceiling:
        report["drawn"] = measure(drawn, first, motions)
    log.info("%s", json.dumps(report, indent=2))
    if given.report:
        given.report.write_text(json.dumps(report, indent=2) + "\n")
    if given.sheet:
        # A row for each motion, of garments in turn: what is asked, and what the model makes of it.
        rows = [
            k * given.each * len(MOTIONS) + k % len(MOTIONS) for k in range(len(clips) // (given.each * len(MOTIONS)))
        ]
        frames = [frame for k in rows[:12] for frame in (*clips[k], *drawn[k])]
        contact_sheet(frames, 2 * FRAMES).save(given.sheet)


if __name__ == "__main__":
    main()
