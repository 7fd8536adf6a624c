"""Outlines of the ten garments as layers of polygons and strokes.

Units: the picture spans -1..1 on both axes and y points down. Tones: below 1 darkens the cloth, 1 keeps it, above 1
mixes it with white (1.7 is seven tenths white), so that one drawing serves every colour and print.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points: TypeAlias = NDArray[np.float64]
Uniform: TypeAlias = Callable[[float, float], float]
Kind: TypeAlias = Literal["cloth", "cut", "tone", "stroke"]


@dataclass(frozen=True, slots=True)
class Layer:
    """One step of a drawing.

    Attributes:
        kind: "cloth" adds to the silhouette, "cut" takes away from it, "tone" and "stroke" only shade what is there.
        points: Outline (or path of a stroke), shape (n, 2).
        tone: Shade of the layer; see the module's text.
        width: Width of a stroke, in picture units.
    """

    kind: Kind
    points: Points
    tone: float = 1.0
    width: float = 0.0


Shape: TypeAlias = Callable[[Uniform], list[Layer]]


def smooth(points: ArrayLike, times: int = 2) -> Points:
    """Round a closed outline by Chaikin's corner cutting (each round doubles the points)."""
    p = np.asarray(points, dtype=np.float64)
    for _ in range(times):
        q = np.roll(p, -1, axis=0)
        p = np.stack([0.75 * p + 0.25 * q, 0.25 * p + 0.75 * q], axis=1).reshape(-1, 2)
    return p


def mirror(right: ArrayLike) -> Points:
    """Close a left-right symmetric outline given its right half from top to bottom."""
    r = np.asarray(right, dtype=np.float64)
    return np.concatenate([r, r[::-1] * np.array([-1.0, 1.0])])


def ellipse(cx: float, cy: float, rx: float, ry: float, n: int = 40) -> Points:
    """Return an ellipse as n points, from its right through its bottom half first (y points down)."""
    a = np.linspace(0, 2 * math.pi, n, endpoint=False)
    return np.stack([cx + rx * np.cos(a), cy + ry * np.sin(a)], axis=1)


def _cloth(points: ArrayLike, tone: float = 1.0) -> Layer:
    return Layer("cloth", np.asarray(points, dtype=np.float64), tone)


def _cut(points: ArrayLike) -> Layer:
    return Layer("cut", np.asarray(points, dtype=np.float64))


def _tone(points: ArrayLike, tone: float) -> Layer:
    return Layer("tone", np.asarray(points, dtype=np.float64), tone)


def _stroke(points: ArrayLike, width: float, tone: float) -> Layer:
    return Layer("stroke", np.asarray(points, dtype=np.float64), tone, width)


def _both(points: Sequence[tuple[float, float]], width: float, tone: float) -> list[Layer]:
    p = np.asarray(points, dtype=np.float64)
    return [_stroke(p, width, tone), _stroke(p * np.array([-1.0, 1.0]), width, tone)]


def _band(top: float, bottom: float, tone: float) -> Layer:
    return _tone([(-1, top), (1, top), (1, bottom), (-1, bottom)], tone)


def dress(u: Uniform) -> list[Layer]:
    """Fitted bodice, belt, wide skirt; strapped or with short sleeves."""
    waist, flare, hem = u(0.17, 0.22), u(0.5, 0.7), u(0.74, 0.86)
    if u(0, 1) < 0.45:
        arm = [(0.34, -0.78), (0.55, -0.5), (0.43, -0.4), (0.27, -0.5)]
    else:
        arm = [(0.29, -0.84), (0.24, -0.62), (0.28, -0.5)]
    knee = (waist + (flare - waist) * 0.45, 0.3)
    body = mirror([(0.14, -0.86), (0.2, -0.86), *arm, (waist, -0.14), knee, (flare, hem), (flare * 0.5, hem + 0.06)])
    layers = [_cloth(smooth(body)), _cut(ellipse(0, -0.88, 0.13, u(0.12, 0.24)))]
    layers += [_stroke([(x * waist, -0.05), (x * flare * 1.1, hem)], 0.03, 0.76) for x in (-0.5, 0.0, 0.5)]
    return [*layers, _stroke([(-waist - 0.05, -0.14), (waist + 0.05, -0.14)], u(0.07, 0.1), 0.55)]


def t_shirt(u: Uniform) -> list[Layer]:
    """Short sleeves that point down and out, a round neck."""
    drop, w, out, hem = u(0.0, 0.12), u(0.4, 0.47), u(0.0, 0.06), u(0.64, 0.78)
    sleeve = [(w + 0.02, -0.6), (0.86 + out, -0.2 + drop), (0.67 + out, 0.02 + drop), (w, -0.2)]
    body = mirror([(0.15, -0.68), (0.22, -0.68), *sleeve, (w, 0.2), (w + u(-0.01, 0.04), hem), (w * 0.9, hem + 0.03)])
    neck = u(0.09, 0.18)
    return [
        _cloth(smooth(body)),
        _cut(ellipse(0, -0.7, 0.17, neck)),
        *_both([(w, -0.18), (w + 0.03, -0.56)], 0.035, 0.7),
        _stroke(ellipse(0, -0.7, 0.2, neck + 0.05)[:20], 0.05, 0.62),
        _stroke([(-w, hem - 0.07), (w, hem - 0.07)], 0.03, 0.76),
    ]


def trousers(u: Uniform) -> list[Layer]:
    """Two straight or flared legs under a waistband."""
    wd, flare, crotch = u(0.28, 0.33), u(-0.03, 0.1), u(-0.2, -0.1)
    hip, leg = wd + 0.07, u(0.19, 0.24) + max(flare, 0.0)
    foot = hip + flare
    body = mirror(
        [
            (wd, -0.86),
            (wd + 0.02, -0.84),
            (hip, -0.45),
            (foot, 0.86),
            (foot, 0.88),
            (foot - leg, 0.88),
            (foot - leg, 0.86),
            (0.03, crotch),
        ]
    )
    return [
        _cloth(smooth(body, 1)),
        _band(-1, -0.74, 0.66),
        _stroke([(0, -0.74), (0, crotch)], 0.035, 0.66),
        *_both([(0.18, -0.72), (hip, -0.46)], 0.035, 0.68),
        *_both([(hip - leg * 0.5, -0.1), (foot - leg * 0.5, 0.86)], 0.022, 0.82),
    ]


def skirt(u: Uniform) -> list[Layer]:
    """Return a waistband and pleats that open downwards."""
    wd, flare, hem = u(0.25, 0.31), u(0.58, 0.78), u(0.46, 0.64)
    side = [(wd, -0.58), (wd + 0.02, -0.56), (wd + (flare - wd) * 0.5, -0.08), (flare, hem - 0.08), (flare, hem)]
    body = mirror([*side, (flare * 0.5, hem + 0.1)])
    pleats = int(u(3, 5.9))
    at = [(i + 0.5) / pleats * 2 - 1 for i in range(pleats)]
    layers = [_cloth(smooth(body, 1))]
    layers += [_stroke([(x * wd, -0.42), (x * flare * 0.95, hem + 0.08)], 0.032, 0.7) for x in at]
    return [*layers, _band(-1, -0.42, 0.6)]


def jacket(u: Uniform) -> list[Layer]:
    """Waist-long, open collar, zip, long sleeves held away from the body."""
    w, hem, out = u(0.42, 0.48), u(0.5, 0.62), u(-0.02, 0.06)
    sleeve = [
        (0.74 + out, -0.1),
        (0.9 + out, 0.46),
        (0.88 + out, 0.52),
        (0.7 + out, 0.56),
        (0.67 + out, 0.48),
        (w + 0.02, -0.04),
    ]
    body = mirror(
        [(0.14, -0.74), (0.24, -0.74), (w + 0.04, -0.64), *sleeve, (w, 0.3), (w + 0.01, hem), (w - 0.04, hem + 0.02)]
    )
    v = u(-0.32, -0.1)
    return [
        _cloth(smooth(body)),
        *_both([(w - 0.02, 0.0), (w + 0.02, -0.5)], 0.035, 0.7),
        _tone([(-0.2, -0.8), (0.2, -0.8), (0, v)], 0.36),
        _stroke([(0, v), (0, 0.95)], 0.055, 1.62),
        *_both([(0.24, -0.76), (0, v)], 0.07, 0.56),
        *_both([(0.16, 0.26), (w - 0.08, 0.18)], 0.05, 0.52),
        _band(hem - 0.1, 1, 0.72),
    ]


def coat(u: Uniform) -> list[Layer]:
    """Knee-long with lapels, belt, buttons; sleeves hang along the body."""
    w, hem, flare = u(0.36, 0.42), u(0.8, 0.9), u(0.48, 0.6)
    sleeve = [(0.58, -0.3), (0.66, 0.2), (0.65, 0.26), (0.5, 0.27), (0.48, 0.2), (w + 0.02, -0.2)]
    body = mirror(
        [
            (0.14, -0.88),
            (0.22, -0.88),
            (w + 0.06, -0.78),
            *sleeve,
            (w - 0.03, 0.02),
            (flare, hem - 0.06),
            (flare, hem),
            (flare * 0.5, hem + 0.03),
        ]
    )
    v, belt = u(-0.48, -0.34), u(0.0, 0.08)
    buttons = [_tone(ellipse(side, y, 0.05, 0.05, 12), 1.7) for y in (-0.2, 0.28, 0.52) for side in (-0.12, 0.12)]
    return [
        _cloth(smooth(body)),
        *_both([(w - 0.01, 0.1), (w + 0.03, -0.6)], 0.035, 0.66),
        _stroke([(0, v), (0, 1)], 0.035, 0.6),
        _tone([(-0.16, -0.94), (0.16, -0.94), (0, v)], 0.36),
        *_both([(0.22, -0.88), (0.2, -0.6), (0, v)], 0.06, 0.58),
        _stroke([(-w, belt), (w, belt)], 0.1, 0.5),
        *buttons,
    ]


def sneaker(u: Uniform) -> list[Layer]:
    """Return a low shoe seen from its side: pale sole, laces, toe cap."""
    h, toe, sole = u(-0.5, -0.38), u(0.82, 0.9), u(0.14, 0.18)
    collar = [(-0.84, h + 0.06), (-0.72, h - 0.02), (-0.42, h + 0.18), (-0.14, h - 0.06), (-0.02, h)]
    upper = [*collar, (0.38, -0.04), (toe - 0.12, 0.06), (toe, 0.26), (toe, 0.42), (-0.86, 0.42), (-0.88, 0.1)]
    base = [
        (-0.92, 0.38),
        (toe + 0.05, 0.38),
        (toe + 0.06, 0.38 + sole),
        (toe - 0.04, 0.42 + sole),
        (-0.86, 0.42 + sole),
        (-0.92, 0.36 + sole),
    ]
    laces = [
        _stroke([(x - 0.14, y + 0.1), (x + 0.07, y - 0.02)], 0.06, 1.75)
        for x, y in ((0.0, h + 0.12), (0.15, h + 0.25), (0.3, h + 0.37))
    ]
    return [
        _cloth(smooth(upper)),
        _tone(smooth([(toe - 0.32, 0.42), (toe - 0.26, 0.08), (toe + 0.1, 0.08), (toe + 0.1, 0.42)], 1), 0.74),
        *laces,
        _stroke([(-0.55, 0.36), (-0.3, 0.0), (-0.12, 0.36)], 0.06, 1.6),
        _cloth(smooth(base), 1.62),
        _stroke([(-0.9, 0.38), (toe + 0.05, 0.38)], 0.04, 0.6),
    ]


def boot(u: Uniform) -> list[Layer]:
    """Return a high shaft, a foot to one side, a dark sole with a heel."""
    top, wd, toe, heel = u(-0.88, -0.74), u(0.24, 0.29), u(0.64, 0.78), u(0.07, 0.14)
    shaft = [(-wd - 0.18, top), (-wd - 0.16, top), (wd - 0.16, top), (wd - 0.14, top), (wd - 0.12, 0.1)]
    leather = [
        *shaft,
        (toe - 0.16, 0.3),
        (toe, 0.48),
        (toe, 0.68),
        (-wd - 0.2, 0.68),
        (-wd - 0.22, 0.5),
        (-wd - 0.16, 0.1),
    ]
    sole = [
        (-wd - 0.22, 0.66),
        (toe + 0.03, 0.66),
        (toe + 0.03, 0.75),
        (-0.02, 0.76),
        (-0.06, 0.73 + heel),
        (-wd - 0.2, 0.73 + heel),
    ]
    return [
        _cloth(smooth(leather)),
        _band(top - 0.1, top + 0.14, 0.66),
        _stroke([(-wd - 0.16, 0.16), (-0.05, 0.27), (wd - 0.1, 0.12)], 0.04, 0.66),
        _stroke([(wd - 0.26, top + 0.2), (wd - 0.22, 0.04)], 0.035, 0.7),
        _cloth(sole, 0.4),
    ]


def hat(u: Uniform) -> list[Layer]:
    """Return a wide brim, a dented crown, a dark ribbon."""
    rx, cr, top = u(0.8, 0.92), u(0.38, 0.46), u(-0.6, -0.44)
    crown = [
        (-cr - 0.04, 0.2),
        (-cr, -0.1),
        (-cr * 0.85, top),
        (-0.1, top - 0.1),
        (0.0, top - u(0, 0.08)),
        (0.1, top - 0.1),
        (cr * 0.85, top),
        (cr, -0.1),
        (cr + 0.04, 0.2),
    ]
    ribbon = [(-cr - 0.08, -0.02), (cr + 0.08, -0.02), (cr + 0.08, 0.18), (-cr - 0.08, 0.18)]
    return [
        _cloth(ellipse(0, 0.24, rx, u(0.17, 0.23)), 0.88),
        _cloth(smooth(crown)),
        _tone(smooth(ribbon, 1), 0.42),
        _stroke(ellipse(0, 0.18, cr + 0.06, 0.1)[:20], 0.045, 0.62),
    ]


def bag(u: Uniform) -> list[Layer]:
    """Return a handbag: arched handle, flap, clasp."""
    a, b, top, bottom = u(0.52, 0.6), u(0.62, 0.76), u(-0.14, -0.02), u(0.66, 0.8)
    rx, ry = u(0.3, 0.38), u(0.52, 0.62)
    body = [
        (-a, top),
        (-a + 0.02, top),
        (a - 0.02, top),
        (a, top),
        (b, bottom - 0.04),
        (b - 0.02, bottom),
        (-b + 0.02, bottom),
        (-b, bottom - 0.04),
    ]
    flap = top + u(0.26, 0.38)
    return [
        _cloth(ellipse(0, top, rx, ry), 0.74),
        _cut(ellipse(0, top, rx - 0.11, ry - 0.11)),
        _cloth(smooth(body)),
        _stroke([(-a - 0.06, flap), (0, flap + 0.13), (a + 0.06, flap)], 0.05, 0.56),
        _tone(ellipse(0, flap + 0.12, 0.09, 0.09, 16), 1.75),
    ]


SHAPES: Final[dict[str, Shape]] = {
    "dress": dress,
    "t-shirt": t_shirt,
    "trousers": trousers,
    "skirt": skirt,
    "jacket": jacket,
    "coat": coat,
    # Shoes all face right: drawn either way, a model this small blends both into one with two toes.
    "sneaker": sneaker,
    "boot": boot,
    "hat": hat,
    "bag": bag,
}
