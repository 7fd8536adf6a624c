"""Scenes and changes: drawings from equal streams that differ in what an instruction asks, and in nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeAlias

import numpy as np

from models.garments.catalogue import BACKGROUNDS, CLOTHS, HELD_OUT, PRINTS, TRAINED_PAIRS, UNDER_WHITE, GarmentFacts
from models.garments.draw import Drawing, Streams, choose, draw_from, second_colours
from models.garments.shapes import SHAPES, Layer, Shape, Uniform, ellipse, mirror, smooth

# What one change is about. "plain" takes a print away; "sleeves" only fits what LONG knows.
KINDS: Final = ("colour", "print", "plain", "garment", "sleeves", "ground")
_ODDS: Final = (0.4, 0.2, 0.07, 0.18, 0.08, 0.07)
_TWO_AT_ONCE: Final = 0.08
_LONG_SHARE: Final = 0.3


def _long_t_shirt(u: Uniform) -> list[Layer]:
    """Draw the t-shirt with sleeves down to the hips; chance is drawn in the same order as for the short one."""
    drop, w, out, hem = u(0.0, 0.12), u(0.4, 0.47), u(0.0, 0.06), u(0.64, 0.78)
    sleeve = [(w + 0.02, -0.6), (0.78 + out, -0.1 + drop), (0.93 + out, 0.5), (0.73 + out, 0.56), (w, -0.04)]
    body = mirror([(0.15, -0.68), (0.22, -0.68), *sleeve, (w, 0.2), (w + u(-0.01, 0.04), hem), (w * 0.9, hem + 0.03)])
    neck = u(0.09, 0.18)
    seam = np.array([(w, -0.02), (w + 0.03, -0.56)])
    return [
        Layer("cloth", smooth(body)),
        Layer("cut", ellipse(0, -0.7, 0.17, neck)),
        Layer("stroke", seam, 0.7, 0.035),
        Layer("stroke", seam * np.array([-1.0, 1.0]), 0.7, 0.035),
        Layer("stroke", ellipse(0, -0.7, 0.2, neck + 0.05)[:20], 0.62, 0.05),
        Layer("stroke", np.array([(-w, hem - 0.07), (w, hem - 0.07)]), 0.76, 0.03),
    ]


def _long_dress(u: Uniform) -> list[Layer]:
    """Draw the dress with sleeves down to the hips; chance is drawn in the same order as for the usual one."""
    waist, flare, hem = u(0.17, 0.22), u(0.5, 0.7), u(0.74, 0.86)
    u(0, 1)
    arm = [(0.34, -0.78), (0.62, -0.3), (0.8, 0.14), (0.63, 0.23), (0.46, -0.14), (0.27, -0.44)]
    knee = (waist + (flare - waist) * 0.45, 0.3)
    body = mirror([(0.14, -0.86), (0.2, -0.86), *arm, (waist, -0.14), knee, (flare, hem), (flare * 0.5, hem + 0.06)])
    folds = [np.array([(x * waist, -0.05), (x * flare * 1.1, hem)]) for x in (-0.5, 0.0, 0.5)]
    layers = [Layer("cloth", smooth(body)), Layer("cut", ellipse(0, -0.88, 0.13, u(0.12, 0.24)))]
    layers += [Layer("stroke", fold, 0.76, 0.03) for fold in folds]
    belt = np.array([(-waist - 0.05, -0.14), (waist + 0.05, -0.14)])
    return [*layers, Layer("stroke", belt, 0.55, u(0.07, 0.1))]


LONG: Final[dict[str, Shape]] = {"dress": _long_dress, "t-shirt": _long_t_shirt}


@dataclass(frozen=True, slots=True)
class GarmentScene:
    """What one picture shows: its facts, and whether the sleeves are long."""

    facts: GarmentFacts
    long: bool = False

    def draw(self, seed: int, size: int = 64) -> Drawing:
        """Draw it; scenes drawn from one seed share their pose, cut, shades and light."""
        shape = LONG[self.facts.garment] if self.long else SHAPES[self.facts.garment]
        return draw_from(self.facts, Streams.seeded(seed), size, shape)


def fits(scene: GarmentScene) -> bool:
    """Tell whether a scene may be drawn: no held-out pair, its colours told apart, no white cloth on white."""
    facts = scene.facts
    if (facts.garment, facts.colour) in HELD_OUT or (scene.long and facts.garment not in LONG):
        return False
    if facts.second and facts.second not in second_colours(facts.garment, facts.colour):
        return False
    if facts.colour == "white":
        return facts.background in UNDER_WHITE
    return not (facts.second == "white" and facts.background == "white")


def start(rng: np.random.Generator) -> GarmentScene:
    """Draw the scene that a family of changes begins with."""
    facts = choose(rng)
    return GarmentScene(facts, facts.garment in LONG and rng.random() < _LONG_SHARE)


def _one(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]


def _changed(scene: GarmentScene, kind: str, rng: np.random.Generator) -> GarmentScene:
    facts = scene.facts
    if kind == "colour":
        return replace(scene, facts=replace(facts, colour=_one(tuple(CLOTHS), rng)))
    if kind == "print":
        second = _one([*second_colours(facts.garment, facts.colour), "white"], rng)
        return replace(scene, facts=replace(facts, print=_one(PRINTS[1:], rng), second=second))
    if kind == "plain":
        return replace(scene, facts=replace(facts, print="plain", second=""))
    if kind == "garment":
        return GarmentScene(replace(facts, garment=_one(tuple(SHAPES), rng)))
    if kind == "sleeves":
        return replace(scene, long=not scene.long)
    return replace(scene, facts=replace(facts, background=_one(tuple(BACKGROUNDS), rng)))


def change(scene: GarmentScene, rng: np.random.Generator) -> GarmentScene:
    """Draw a scene that differs from this one in one thing, now and then in two."""
    while True:
        changed = scene
        for _ in range(2 if rng.random() < _TWO_AT_ONCE else 1):
            changed = _changed(changed, KINDS[int(rng.choice(len(KINDS), p=_ODDS))], rng)
        if changed != scene and fits(changed):
            return changed


def differences(before: GarmentScene, after: GarmentScene) -> tuple[str, ...]:
    """Name what differs, in the order an instruction says it: members of KINDS."""
    a, b = before.facts, after.facts
    found = []
    if a.garment != b.garment:
        found.append("garment")
    if a.colour != b.colour:
        found.append("colour")
    if (a.print, a.second) != (b.print, b.second):
        found.append("print" if b.second else "plain")
    if a.garment == b.garment and before.long != after.long:
        found.append("sleeves")
    if a.background != b.background:
        found.append("ground")
    return tuple(found)


# A picture's number, the other's, and what both show.
Pair: TypeAlias = tuple[int, int, GarmentScene, GarmentScene]


def family(seed: int, changes: int) -> tuple[list[GarmentScene], list[Pair]]:
    """Draw one scene, its changes, and the pairs among them: there, back, and from one change to another.

    Args:
        seed: Of the choices; the drawings of a family are made from it too.
        changes: Scenes beside the first.
    """
    rng = np.random.default_rng([7, seed])
    first = start(rng)
    scenes = [first, *(change(first, rng) for _ in range(changes))]
    pairs: list[Pair] = []
    for i, before in enumerate(scenes):
        for j, after in enumerate(scenes):
            found = differences(before, after)
            # Two changed garments may have lost sleeves on the way, so only pairs with the first may change garments.
            if found and (0 in (i, j) or (len(found) == 1 and found[0] != "garment")):
                pairs.append((i, j, before, after))
    return scenes, pairs


def held_out_scenes(seed: int) -> list[tuple[GarmentScene, GarmentScene]]:
    """Return the sixteen held-out changes, each from a colour that a seed picks: only the colour becomes another."""
    rng = np.random.default_rng([11, seed])
    made: list[tuple[GarmentScene, GarmentScene]] = []
    for garment, colour in sorted(HELD_OUT):
        sources = [c for g, c in TRAINED_PAIRS if g == garment and c not in {"white", colour}]
        before = GarmentScene(GarmentFacts(garment, _one(sources, rng), background=_one(tuple(BACKGROUNDS), rng)))
        made.append((before, replace(before, facts=replace(before.facts, colour=colour))))
    return made
