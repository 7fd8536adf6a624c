"""What a caller may have done to the pictures before they are trained on: the types, their parameters, their limits.

Pure: the service asks at the door, the trainer reads the same table.

| type | parameters (default) |
|---|---|
| `resize` | `size` of the longer side; or `width`, `height`, or both, with `fit` (`cover`; `contain`, `stretch`) |
| `center_crop` | `size` of a square; or `width`, `height`, one for both or both; or `aspect_ratio` |
| `smart_crop` | as `center_crop`, or none: around what `focus` (`subject`; `face`) finds, with a `margin` (0.1) |
| `pad` | as `center_crop` (aspect_ratio 1); `color` (`white`) |
| `flip` | `direction` (`horizontal`; `vertical`), `keep_original` (true), `probability` (1) |
| `color_jitter` | `brightness`, `contrast`, `saturation` (0.1); `hue` (0); `copies` (1); likewise |
| `remove_background` | `model` (`u2net`; `u2netp`), `color` (`white`) |

A color is `white`, `black`, `grey`, `#rrggbb`, or `border`: the median of the picture's outermost pixels.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Literal, TypeAlias

from meshkit.errors import ErrorKind, FieldViolation, MeshError

PATH: Final = "preprocessing_transforms"
MAX_TRANSFORMS: Final = 16
MAX_VARIANTS: Final = 16
"""Most pictures that transforms may make of one."""
MAX_SIDE: Final = 8192
_COLOUR = re.compile(r"(?:white|black|grey|border|#[0-9a-fA-F]{6})\Z")
_COLOUR_FAULT = "Input should be 'white', 'black', 'grey', 'border' or '#rrggbb'"
_NAMED_COLOURS: Final = {"white": (255, 255, 255), "black": (0, 0, 0), "grey": (128, 128, 128)}

OptionValue: TypeAlias = int | float | bool | str


@dataclass(frozen=True, slots=True)
class TransformOption:
    """One parameter of a transform.

    Attributes:
        kind: What its value is.
        default: Value where the caller gives none; None for none.
        low: Least number.
        high: Greatest number.
        choices: Words that it takes.
    """

    kind: Literal["whole", "number", "flag", "word", "colour"]
    default: OptionValue | None = None
    low: float = 0.0
    high: float = 1.0
    choices: tuple[str, ...] = ()

    def fault(self, value: object) -> tuple[str, str] | None:
        """Return what is wrong with a value and the violation's type; None where nothing is."""
        if self.kind in ("whole", "number"):
            return self._number_fault(value)
        if self.kind == "flag":
            return None if isinstance(value, bool) else ("Input should be a valid boolean", "bool_type")
        if self.kind == "word":
            listed = " or ".join(f"'{one}'" for one in self.choices)
            return None if value in self.choices else (f"Input should be {listed}", "enum")
        fits = isinstance(value, str) and _COLOUR.match(value)
        return None if fits else (_COLOUR_FAULT, "string_pattern_mismatch")

    def _number_fault(self, value: object) -> tuple[str, str] | None:
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return "Input should be a valid number", "float_type"
        if self.kind == "whole" and value != int(value):
            return "Input should be a whole number", "int_from_float"
        if value < self.low:
            return f"Input should be greater than or equal to {self.low:g}", "greater_than_equal"
        return (
            None if value <= self.high else (f"Input should be less than or equal to {self.high:g}", "less_than_equal")
        )


def _side() -> TransformOption:
    return TransformOption("whole", low=16, high=MAX_SIDE)


def _shape() -> dict[str, TransformOption]:
    return {
        "size": _side(),
        "width": _side(),
        "height": _side(),
        "aspect_ratio": TransformOption("number", low=0.1, high=10),
    }


def _share(default: float, high: float = 1.0) -> TransformOption:
    return TransformOption("number", default, 0, high)


_KEPT = TransformOption("flag", default=True)
# How likely a picture is changed at all; one that is not stays as it is, once.
_LIKELY = _share(1.0)
_WHITE = TransformOption("colour", "white")
OPTIONS: Final[Mapping[str, Mapping[str, TransformOption]]] = {
    "resize": {
        "size": _side(),
        "width": _side(),
        "height": _side(),
        "fit": TransformOption("word", "cover", choices=("cover", "contain", "stretch")),
    },
    "center_crop": _shape(),
    "smart_crop": {
        **_shape(),
        "focus": TransformOption("word", "subject", choices=("subject", "face")),
        "margin": _share(0.1),
    },
    "pad": {**_shape(), "color": _WHITE},
    "flip": {
        "direction": TransformOption("word", "horizontal", choices=("horizontal", "vertical")),
        "keep_original": _KEPT,
        "probability": _LIKELY,
    },
    "color_jitter": {
        "brightness": _share(0.1),
        "contrast": _share(0.1),
        "saturation": _share(0.1),
        "hue": _share(0.0, 0.5),
        "copies": TransformOption("whole", 1, 1, 8),
        "keep_original": _KEPT,
        "probability": _LIKELY,
    },
    "remove_background": {"model": TransformOption("word", "u2net", choices=("u2net", "u2netp")), "color": _WHITE},
}
"""Parameters by type."""


@dataclass(frozen=True, slots=True)
class PictureTransform:
    """One transform that holds.

    Attributes:
        type: One of `OPTIONS`.
        options: All of its parameters that have a value; whole numbers as int.
    """

    type: str
    options: Mapping[str, OptionValue]

    @property
    def variants(self) -> int:
        """Pictures that it makes of one."""
        if self.type == "flip":
            return 2 if self.options["keep_original"] else 1
        if self.type == "color_jitter":
            return int(self.options["copies"]) + (1 if self.options["keep_original"] else 0)
        return 1

    def as_json(self) -> dict[str, OptionValue]:
        """Return it as a caller would write it, with its defaults."""
        return {"type": self.type, **self.options}


def parse_transforms(given: Sequence[Any], *, path: str = PATH) -> tuple[PictureTransform, ...]:
    """Read the transforms of a request.

    Args:
        given: Objects as callers write them: `type`, and parameters of that type. A null counts as absent.
        path: Path of the member, for errors.

    Raises:
        MeshError: `INVALID`, with a violation for everything that does not hold.
    """
    violations: list[FieldViolation] = []
    if len(given) > MAX_TRANSFORMS:
        told = f"List should have at most {MAX_TRANSFORMS} items"
        raise _refusal([FieldViolation(path, told, "too_long")])
    found = [_parsed(one, f"{path}[{index}]", violations) for index, one in enumerate(given)]
    if violations:
        raise _refusal(violations)
    transforms = tuple(one for one in found if one is not None)
    if math.prod(one.variants for one in transforms) > MAX_VARIANTS:
        told = f"The transforms make more than {MAX_VARIANTS} pictures of one"
        raise _refusal([FieldViolation(path, told, "too_many_variants")])
    return transforms


def colour_of(name: str) -> tuple[int, int, int] | None:
    """Return the levels of a color; None for `border`."""
    if name.startswith("#"):
        return int(name[1:3], 16), int(name[3:5], 16), int(name[5:7], 16)
    return _NAMED_COLOURS.get(name)


def _refusal(violations: Sequence[FieldViolation]) -> MeshError:
    return MeshError(ErrorKind.INVALID, violations[0].message, violations=violations)


def _parsed(given: object, path: str, violations: list[FieldViolation]) -> PictureTransform | None:
    if not isinstance(given, Mapping):
        violations.append(FieldViolation(path, "Input should be an object", "dict_type"))
        return None
    kind = given.get("type")
    if kind is None:
        violations.append(FieldViolation(f"{path}.type", "Field required", "missing"))
        return None
    if not isinstance(kind, str) or kind not in OPTIONS:
        listed = ", ".join(f"'{one}'" for one in OPTIONS)
        violations.append(FieldViolation(f"{path}.type", f"Input should be one of {listed}", "enum"))
        return None
    before = len(violations)
    values = _values(kind, given, path, violations)
    if len(violations) == before and (fault := _shape_fault(kind, values)):
        violations.append(FieldViolation(path, fault, "value_error"))
    if len(violations) > before:
        return None
    defaults = {name: option.default for name, option in OPTIONS[kind].items() if option.default is not None}
    if kind != "resize" and len(sides := {"width", "height"} & values.keys()) == 1:
        values = {**values, "width": values[min(sides)], "height": values[min(sides)]}
    if kind == "pad" and not {"size", "width", "aspect_ratio"} & values.keys():
        defaults["aspect_ratio"] = 1.0
    if kind == "resize" and not {"width", "height"} <= values.keys():
        del defaults["fit"]
    return PictureTransform(kind, MappingProxyType({**defaults, **values}))


def _values(kind: str, given: Mapping[str, Any], path: str, violations: list[FieldViolation]) -> dict[str, OptionValue]:
    known = OPTIONS[kind]
    values: dict[str, OptionValue] = {}
    for name, value in given.items():
        if name == "type" or value is None:
            continue
        option = known.get(name)
        if option is None:
            told = f"{kind} takes no such parameter; it takes {', '.join(known)}"
            violations.append(FieldViolation(f"{path}.{name}", told, "extra_forbidden"))
        elif (fault := option.fault(value)) is not None:
            violations.append(FieldViolation(f"{path}.{name}", *fault))
        else:
            values[name] = int(value) if option.kind == "whole" else value
    return values


def _shape_fault(kind: str, values: Mapping[str, object]) -> str | None:
    """Return what is wrong with how a transform names the shape that it brings a picture to."""
    given = {"size", "width", "height", "aspect_ratio"} & values.keys()
    if kind == "resize":
        if not given or ("size" in given and len(given) > 1):
            return "resize takes size, or width and height or one of them"
        if "fit" in values and given != {"width", "height"}:
            return "fit is for a width and a height together"
        return None
    if kind not in ("center_crop", "smart_crop", "pad"):
        return None
    if given in ({"size"}, {"width", "height"}, {"width"}, {"height"}, {"aspect_ratio"}) or (
        not given and kind != "center_crop"
    ):
        return None
    return f"{kind} takes size, or width and height or one of them, or aspect_ratio"
