"""Members of `config.fashn` are refused at the create where FASHN would take none of them."""

from __future__ import annotations

from typing import Any

import pytest
from atelier.tasks.v1.editing_pb2 import CreateEditingTask
from google.protobuf.struct_pb2 import Struct

from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.errors import MeshError
from services.tasks.catalog import Catalog

GARMENT = CreateEditingTask(reference_images=["uploads/shirt.jpg"])


def check(fashn: Any, detail: CreateEditingTask = GARMENT, provider: str = "FASHN_STANDARD") -> None:
    config = Struct()
    config.update({"fashn": fashn, "own": 1})
    Catalog(providers=PROVIDERS).check_config(config, TASK_TYPES["EDITING"], PROVIDERS[provider], "task.config", detail)


@pytest.mark.parametrize(
    "fashn",
    [
        None,
        {},
        {"category": "tops", "mode": "quality", "segmentation_free": True},
        {"model": "tryon-max", "generation_mode": "quality", "resolution": None},
        {"model": "edit", "resolution": "4k"},
    ],
)
def test_what_a_model_takes_passes(fashn: Any) -> None:
    check(fashn)


@pytest.mark.parametrize(
    ("fashn", "path", "kind"),
    [
        ("tops", "task.config.fashn", "dict_type"),
        ({"model": "tryon-9"}, "task.config.fashn.model", "enum"),
        ({"model": 9}, "task.config.fashn.model", "enum"),
        ({"category": "hats"}, "task.config.fashn.category", "enum"),
        ({"model": "tryon-max", "generation_mode": "fast"}, "task.config.fashn.generation_mode", "enum"),
        ({"model": "edit", "category": "tops"}, "task.config.fashn.category", "unknown_member"),
        ({"modle": "edit"}, "task.config.fashn.modle", "unknown_member"),
        ({"segmentation_free": "yes"}, "task.config.fashn.segmentation_free", "bool_type"),
    ],
)
def test_what_no_model_takes_is_refused(fashn: Any, path: str, kind: str) -> None:
    with pytest.raises(MeshError) as refused:
        check(fashn)
    assert [(one.path, one.type) for one in refused.value.violations] == [(path, kind)]


def test_model_that_needs_a_garment_is_refused_without_one() -> None:
    with pytest.raises(MeshError) as refused:
        check({"model": "tryon-v1.6"}, CreateEditingTask(base_image="people/anna.jpg"))
    assert refused.value.violations[0].type == "reference_required"
    check({"model": "tryon-v1.6"}, CreateEditingTask(reference_image_url="https://example.com/shirt.jpg"))


def test_members_for_another_provider_are_left_alone() -> None:
    check("anything", provider="VERTEX")
