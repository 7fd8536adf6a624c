from typing import Any

import pytest

from meshkit.errors import ErrorKind, MeshError
from services.training.trainer.dataset.transforms import OPTIONS, colour_of, parse_transforms


def faults(*given: Any) -> list[tuple[str, str]]:
    with pytest.raises(MeshError) as caught:
        parse_transforms(given)
    assert caught.value.kind is ErrorKind.INVALID
    return [(one.path, one.type) for one in caught.value.violations]


def test_every_type_that_is_documented_is_known() -> None:
    documented = {"resize", "center_crop", "smart_crop", "pad", "flip", "color_jitter", "remove_background"}
    assert set(OPTIONS) == documented


def test_a_transform_gets_its_defaults_and_whole_numbers_are_whole() -> None:
    (resize, jitter) = parse_transforms(
        [{"type": "resize", "width": 512.0, "height": 768.0}, {"type": "color_jitter", "hue": None}]
    )
    assert dict(resize.options) == {"width": 512, "height": 768, "fit": "cover"}
    assert isinstance(resize.options["width"], int)
    assert jitter.options["brightness"] == 0.1
    assert jitter.variants == 2
    assert parse_transforms([{"type": "pad"}])[0].options == {"aspect_ratio": 1.0, "color": "white"}


def test_what_is_read_can_be_written_and_read_again() -> None:
    given = [
        {"type": "resize", "width": 64},
        {"type": "pad", "size": 128, "color": "#102030"},
        {"type": "smart_crop"},
        {"type": "flip", "direction": "vertical", "keep_original": False},
    ]
    transforms = parse_transforms(given)
    assert parse_transforms([one.as_json() for one in transforms]) == transforms


def test_an_unknown_type_is_named_with_its_place() -> None:
    assert faults({"type": "flip"}, {"type": "sharpen"}) == [("preprocessing_transforms[1].type", "enum")]
    assert faults({"size": 4}) == [("preprocessing_transforms[0].type", "missing")]
    assert faults("flip") == [("preprocessing_transforms[0]", "dict_type")]


def test_an_unknown_parameter_is_named_beside_those_that_there_are() -> None:
    with pytest.raises(MeshError, match="it takes size, width, height, fit") as caught:
        parse_transforms([{"type": "resize", "sise": 512}])
    assert caught.value.violations[0].path == "preprocessing_transforms[0].sise"


@pytest.mark.parametrize(
    ("given", "name", "kind"),
    [
        ({"type": "resize", "size": 15}, "size", "greater_than_equal"),
        ({"type": "resize", "size": 8193}, "size", "less_than_equal"),
        ({"type": "resize", "size": 20.5}, "size", "int_from_float"),
        ({"type": "resize", "size": "20"}, "size", "float_type"),
        ({"type": "resize", "size": True}, "size", "float_type"),
        ({"type": "resize", "width": 64, "height": 64, "fit": "squeeze"}, "fit", "enum"),
        ({"type": "flip", "keep_original": 1}, "keep_original", "bool_type"),
        ({"type": "pad", "color": "mauve"}, "color", "string_pattern_mismatch"),
        ({"type": "pad", "color": ["white"]}, "color", "string_pattern_mismatch"),
        ({"type": "color_jitter", "brightness": float("nan")}, "brightness", "float_type"),
        ({"type": "color_jitter", "copies": 9}, "copies", "less_than_equal"),
        ({"type": "remove_background", "model": "sam"}, "model", "enum"),
    ],
)
def test_a_value_out_of_range_is_named(given: dict[str, Any], name: str, kind: str) -> None:
    assert faults(given) == [(f"preprocessing_transforms[0].{name}", kind)]


@pytest.mark.parametrize(
    "given",
    [
        {"type": "resize"},
        {"type": "resize", "size": 64, "width": 64},
        {"type": "resize", "width": 64, "fit": "contain"},
        {"type": "center_crop"},
        {"type": "center_crop", "size": 64, "width": 64},
        {"type": "smart_crop", "size": 64, "aspect_ratio": 1},
        {"type": "pad", "height": 64, "aspect_ratio": 1},
    ],
)
def test_a_shape_that_is_not_told_or_told_twice_is_refused(given: dict[str, Any]) -> None:
    assert faults(given) == [("preprocessing_transforms[0]", "value_error")]


def test_all_faults_are_told_at_once() -> None:
    told = faults({"type": "flip", "direction": "up", "speed": 3}, {"type": "nothing"})
    assert [path for path, _ in told] == [
        "preprocessing_transforms[0].direction",
        "preprocessing_transforms[0].speed",
        "preprocessing_transforms[1].type",
    ]


def test_transforms_and_what_they_make_of_a_picture_are_bounded() -> None:
    assert faults(*[{"type": "flip"}] * 17) == [("preprocessing_transforms", "too_long")]
    many = [{"type": "flip"}, {"type": "flip", "direction": "vertical"}, {"type": "color_jitter", "copies": 8}]
    assert faults(*many) == [("preprocessing_transforms", "too_many_variants")]


def test_colours_are_levels() -> None:
    assert colour_of("#0aFF10") == (10, 255, 16)
    assert colour_of("grey") == (128, 128, 128)
    assert colour_of("border") is None
