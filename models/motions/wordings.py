"""Prompts of motions: how training words them, and the disjoint wordings that measure the model."""

from __future__ import annotations

from typing import Final

import numpy as np

from models.garments.catalogue import CLOTHS, GARMENTS
from models.garments.prompts import COLOUR_WORDS, FILLERS, PLURALS, WORDS
from models.motions.film import MOTIONS, Motion

# {s} is the subject, {a} an adverb or nothing. Plural subjects take the verb as it stands: grammar carries no motion.
TRAINING: Final[dict[Motion, tuple[str, ...]]] = {
    "sway": (
        "{s} sways {a}",
        "{s} swaying {a}",
        "{s} sways from side to side",
        "{s} is swaying in the wind",
        "{s} swings {a}",
        "{s} swinging from left to right and back",
        "{s} hangs and swings {a} in the breeze",
        "{s} moves in the wind",
        "wind moves {s} {a}",
        "{s} waving in the wind",
        "{s} flutters {a}",
        "a breeze sways {s}",
        "let {s} sway {a}",
        "make {s} swing",
        "sway",
        "swing {a}",
        "a swaying motion of {s}",
        "{s} rocks to and fro",
    ),
    "turn": (
        "{s} turns {a}",
        "{s} turning {a}",
        "{s} turns around",
        "{s} is turning to the side",
        "{s} rotates {a}",
        "{s} rotating about its axis",
        "{s} spins {a}",
        "{s} spinning on a stand",
        "turn {s} {a}",
        "rotate {s} {a}",
        "{s} on a turntable",
        "a turn of {s}",
        "make {s} turn around",
        "let {s} spin",
        "turn",
        "rotate {a}",
        "show {s} from the side",
        "a rotation of {s}",
    ),
    "pan left": (
        "the camera pans left {a}",
        "camera pans to the left",
        "camera panning left over {s}",
        "pan left",
        "pan to the left {a}",
        "{s}, camera pans left",
        "{s}, the camera moves left {a}",
        "camera moving to the left of {s}",
        "a pan to the left across {s}",
        "the camera slides left {a}",
        "the camera travels left past {s}",
        "the view pans left over {s}",
        "left pan",
        "{s}, pan left {a}",
    ),
    "pan right": (
        "the camera pans right {a}",
        "camera pans to the right",
        "camera panning right over {s}",
        "pan right",
        "pan to the right {a}",
        "{s}, camera pans right",
        "{s}, the camera moves right {a}",
        "camera moving to the right of {s}",
        "a pan to the right across {s}",
        "the camera slides right {a}",
        "the camera travels right past {s}",
        "the view pans right over {s}",
        "right pan",
        "{s}, pan right {a}",
    ),
    "zoom in": (
        "the camera zooms in {a}",
        "camera zooms in on {s}",
        "camera zooming in {a} on {s}",
        "zoom in",
        "zoom in {a} on {s}",
        "{s}, camera zooms in",
        "the camera moves closer to {s}",
        "the camera comes nearer {a}",
        "a zoom into {s}",
        "{s} grows larger {a}",
        "the camera pushes in on {s}",
        "{s}, zoom in {a}",
        "the view goes closer to {s}",
        "get closer to {s}",
    ),
    "zoom out": (
        "the camera zooms out {a}",
        "camera zooms out from {s}",
        "camera zooming out {a} from {s}",
        "zoom out",
        "zoom out {a} from {s}",
        "{s}, camera zooms out",
        "the camera moves away from {s}",
        "the camera goes back {a}",
        "a zoom out of {s}",
        "{s} becomes smaller {a}",
        "the camera pulls out from {s}",
        "{s}, zoom out {a}",
        "the view goes away from {s}",
        "get further away from {s}",
    ),
}

# Sentences for measuring only: none of them is used in training, though their verbs are.
EVALUATION: Final[dict[Motion, tuple[str, ...]]] = {
    "sway": (
        "watch how {s} sways while the wind blows",
        "a short clip in which {s} keeps swinging",
        "{s} on a hanger, swaying a little",
        "please animate {s} so that it swings",
    ),
    "turn": (
        "watch how {s} turns on the spot",
        "a short clip in which {s} keeps rotating",
        "{s} in a shop window, spinning round",
        "please animate {s} so that it turns",
    ),
    "pan left": (
        "watch {s} while the camera is panning to the left",
        "a short clip with {s} and a camera that pans left",
        "{s} in a shop, filmed with a pan to the left",
        "please animate {s} with the camera moving left",
    ),
    "pan right": (
        "watch {s} while the camera is panning to the right",
        "a short clip with {s} and a camera that pans right",
        "{s} in a shop, filmed with a pan to the right",
        "please animate {s} with the camera moving right",
    ),
    "zoom in": (
        "watch {s} while the camera is zooming in",
        "a short clip with {s} and a camera that zooms in",
        "{s} in a shop, filmed with a zoom in",
        "please animate {s} with the camera coming closer",
    ),
    "zoom out": (
        "watch {s} while the camera is zooming out",
        "a short clip with {s} and a camera that zooms out",
        "{s} in a shop, filmed with a zoom out",
        "please animate {s} with the camera moving away",
    ),
}

_ADVERBS: Final = ("slowly", "gently", "softly", "smoothly", "a little", "quickly", "steadily", "", "", "", "")
_FRAMES: Final = (
    "{p}",
    "{p}",
    "{p}",
    "{p}",
    "a video of {p}",
    "video: {p}",
    "a film where {p}",
    "animate this: {p}",
    "{p}, studio",
    "{p} please",
    "{f} {p}",
    "{p}, {f}",
    "{p}, {f} {f}",
    "a clip: {p}",
)
# Everyday words that say nothing of a motion: thrown in anywhere, they teach the encoder to look for those that do.
_COMMON_TEXT: Final = """
while with in which how so that keeps still then now again here there very please short long clip film scene shot
show see watch there is are on at by for from its own all one two light window shop street day time round
"""
_COMMON: Final = tuple(_COMMON_TEXT.split())
_PLAIN: Final = ("the garment", "the cloth", "it", "this", "the product", "the picture", "the item", "the clothes")


def subject(rng: np.random.Generator) -> str:
    """Draw what a prompt is about; it need not be what the picture shows, since the picture says that itself."""
    if rng.random() < 0.25:
        return _PLAIN[int(rng.integers(len(_PLAIN)))]
    words = WORDS[GARMENTS[int(rng.integers(len(GARMENTS)))]]
    word = words[int(rng.integers(len(words)))]
    said = word
    if rng.random() < 0.6:
        colours = COLOUR_WORDS[list(CLOTHS)[int(rng.integers(len(CLOTHS)))]]
        said = f"{colours[int(rng.integers(len(colours)))]} {word}"
    if word in PLURALS:
        return ("a pair of ", "the ", "some ", "")[int(rng.integers(4))] + said
    article = "an" if said[0] in "aeiou" else "a"
    return (f"{article} ", "the ", "the ", "")[int(rng.integers(4))] + said


def training_wording(motion: Motion, rng: np.random.Generator) -> str:
    """Word one motion as training does."""
    wordings = TRAINING[motion]
    said = wordings[int(rng.integers(len(wordings)))]
    said = said.format(s=subject(rng), a=_ADVERBS[int(rng.integers(len(_ADVERBS)))]).strip()
    frame = _FRAMES[int(rng.integers(len(_FRAMES)))]
    while "{f}" in frame:
        frame = frame.replace("{f}", FILLERS[int(rng.integers(len(FILLERS)))], 1)
    words = frame.replace("{p}", said).split()
    if rng.random() < 0.6:
        for _ in range(int(rng.integers(1, 6))):
            words.insert(int(rng.integers(len(words) + 1)), _COMMON[int(rng.integers(len(_COMMON)))])
    said = " ".join(words)
    return said.capitalize() if rng.random() < 0.3 else said


def training_bank(rng: np.random.Generator, each: int) -> tuple[list[str], list[int]]:
    """`each` prompts of every motion, and the motions as positions in MOTIONS."""
    prompts = [training_wording(motion, rng) for motion in MOTIONS for _ in range(each)]
    return prompts, [m for m in range(len(MOTIONS)) for _ in range(each)]
