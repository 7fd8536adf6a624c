from typing import Any

import pytest
from atelier.tasks.v1.providers_pb2 import SartiqUltimateFaceFixerConfig
from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from meshkit.errors import ErrorKind, MeshError
from meshkit.steering import steering

FACES = SartiqUltimateFaceFixerConfig.DESCRIPTOR


def read(**members: Any) -> SartiqUltimateFaceFixerConfig:
    config = Struct()
    json_format.ParseDict(members, config)
    settings: SartiqUltimateFaceFixerConfig = steering(config, FACES)
    return settings


def test_what_is_absent_or_null_has_its_default() -> None:
    settings = read(max_retries=None, note="mine")
    assert (settings.max_retries, settings.ssim_threshold, settings.expand_percent) == (3, 0.7, 0.5)
    assert (settings.lpips_threshold, settings.feather_px, settings.save_debug_images) == (0, 32, False)


def test_members_are_read_by_their_kind() -> None:
    settings = read(max_retries=0, ssim_threshold=0.9, save_debug_images=True, face_prompt="left", feather_px=4.0)
    assert (settings.max_retries, settings.ssim_threshold) == (0, 0.9)
    assert (settings.save_debug_images, settings.face_prompt, settings.feather_px) == (True, "left", 4)


@pytest.mark.parametrize(
    ("member", "value", "kind"),
    [
        ("max_retries", 21, "greater_than_equal"),
        ("max_retries", -1, "greater_than_equal"),
        ("max_retries", 1.5, "int_type"),
        ("max_retries", 1e300, "int_type"),
        ("max_retries", "3", "float_type"),
        ("max_retries", True, "float_type"),
        ("ssim_threshold", 1.01, "greater_than_equal"),
        ("ssim_threshold", [0.5], "float_type"),
        ("save_debug_images", 1, "bool_type"),
        ("face_prompt", 7, "string_type"),
        ("face_prompt", "x" * 10_001, "string_too_long"),
    ],
)
def test_what_does_not_hold_is_named(member: str, value: Any, kind: str) -> None:
    with pytest.raises(MeshError, match=f"config.{member}|Input should be") as caught:
        read(**{member: value})
    assert caught.value.kind is ErrorKind.INVALID
    assert [(one.path, one.type) for one in caught.value.violations] == [(f"config.{member}", kind)]


def test_every_member_that_breaks_a_rule_is_named() -> None:
    with pytest.raises(MeshError) as caught:
        read(max_retries=21, feather_px=-1)
    assert {one.path for one in caught.value.violations} == {"config.max_retries", "config.feather_px"}
