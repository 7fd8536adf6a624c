"""No documented member is lost between JSON and messages, in any of the eleven types."""

import copy
import json
from pathlib import Path
from typing import Any

import protovalidate
import pytest
from atelier.tasks.v1 import task_pb2

from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding
from meshkit.validation import apply_defaults

SCHEMAS = json.loads((Path(__file__).parent / "documented_surface.json").read_text())["schemas"]
EVERY_TASK: dict[str, Any] = {
    "priority": 2,
    "config": {"a": [1, 2.5, None, {"b": True}], "whole": 3},
    "origin_instance": "shop",
    "origin_zone": "eu",
    "origin_tenant_id": "t",
    "origin_reference": "ref",
    "provider_type": "FREEPIK_MAGNIFIC_PRECISION",
    "provider_config": {"sharpen": 1, "smart_grain": 2, "ultra_detail": 3, "defaultPrompt": "crisp"},
    "active_provider_capabilities": ["SEED"],
    "fallback_provider_type": "LOCAL",
    "fallback_provider_config": {"provider_type": "LOCAL", "rembg_model": "sam"},
    "fallback_provider_capabilities": ["LORA", "SEED"],
    "queue_name": "freepik",
    "webhook_url": "https://example.org/hook",
}
LORAS = {f"{slot}_model_path": f"{slot}.safetensors" for slot in ("subject", "product", "style", "product2")}
WEIGHTS = {f"{slot}_lora_weight": 0.5 for slot in ("subject", "product", "style", "product2")}
STAGES: dict[str, Any] = {}
for stage in ("upscale", "face_detail"):
    STAGES |= {f"{stage}_enabled": False, f"{stage}_prompt": "p", f"{stage}_steps": 7}
    STAGES |= {f"{stage}_denoise": 0.25, f"{stage}_seed": 2**40}
DETAILS: dict[str, tuple[str, dict[str, Any]]] = {
    "CreateGenerationTask": (
        "GENERATION",
        {"prompt": "a red dress", "width": 640, "height": 512, "seed": 2**62, "fal_app_id": "fal-ai/flux"}
        | {"reference_image_data": "iVBORw0KGgo=", "reference_image_url": "https://example.org/a.png"}
        | {"reference_image_strength": 40.5}
        | LORAS
        | WEIGHTS,
    ),
    "CreateEditingTask": (
        "EDITING",
        {"prompt": "make it blue", "width": 64, "height": 32, "seed": 1, "base_image": "a.png", "fal_app_id": "x/y"}
        | {"base_image_data": "aGk=", "base_image_url": "https://example.org/a.png"}
        | {"reference_images": ["b.png", "c.png"], "reference_image_data": "aGk=", "reference_image_url": "b"}
        | {"workflow_id": "11111111-2222-4333-8444-555555555555"},
    ),
    "CreateRefineTask": (
        "REFINE",
        {
            "base_image_url": "a.png",
            "upscale_factor": None,
            "target_width": 64,
            "target_height": 64,
            "fal_app_id": "x/y",
        }
        | STAGES,
    ),
    "CreateVideoGenerationTask": (
        "VIDEO_GENERATION",
        {"prompt": "walks", "negative_prompt": "runs", "input_image_data": "aGk=", "input_image_url": "a.png"}
        | {"duration_seconds": 60, "cfg_scale": 0.0},
    ),
    "CreateLLMInteractionTask": (
        "LLM_INTERACTION",
        {"prompt": "name it", "system_prompt": "be brief", "input_images": ["a.png"]},
    ),
    "CreateBackgroundRemovalTask": ("BACKGROUND_REMOVE", {"input_image_paths": ["a.png", "b.png"]}),
    "CreateDetailEnhancerTask": (
        "DETAIL_ENHANCER",
        {"base_image": "a.png", "reference_image": "b.png", "detail_label": "logos"},
    ),
    "CreateBackgroundFixTask": (
        "BACKGROUND_FIX",
        {"base_image": "a.png", "palette_image": "b.png", "strategy": "replace", "light_threshold": 0}
        | {"shadow_threshold": 0, "mask_expansion_percentage": 0.5, "edge_blur_sigma": 1.5},
    ),
    "CreateImageAdjusterTask": (
        "IMAGE_ADJUSTER",
        {"input_image": "a.png", "mode": "scale", "target_width": 64, "target_height": 32, "tolerance": 0.5}
        | {"reference_image": "b.png", "cropping_position": "top", "resampling": "box", "scaling_proportions": "height"}
        | {"margin_top": 0.1, "margin_bottom": 0.1, "margin_left": 0.2, "margin_right": 0.0, "aspect_ratio": None},
    ),
    "CreateFaceEnhancerTask": ("FACE_ENHANCER", {"input_image": "a.png"}),
    "CreateExperimentalFalTask": ("EXPERIMENTAL_FAL", {"fal_app_id": "x/y", "fal_parameters": {"n": 1}}),
}
# Members of every task that the document does not have.
ADDED = {"media_url", "media_urls", "warnings"}
CODECS = Codecs()


def decoded(message: task_pb2.CreateTask, data: dict[str, Any]) -> Decoding:
    decoding = Decoding(strict=True)
    CODECS.of(task_pb2.CreateTask.DESCRIPTOR).decode(message, data, ("body",), decoding)
    return decoding


@pytest.mark.parametrize("name", sorted(DETAILS))
def test_a_create_carries_every_documented_member_into_its_message_and_back(name: str) -> None:
    task_type, detail = DETAILS[name]
    body = {"task_type": task_type} | EVERY_TASK | detail
    assert set(body) == set(SCHEMAS[name]["fields"])
    task = task_pb2.CreateTask()
    assert decoded(task, copy.deepcopy(body)).violations == []
    protovalidate.validate(task)
    told = CODECS.of(task.DESCRIPTOR).encode(task)
    told["provider_config"].pop("provider_type")
    assert told == body


@pytest.mark.parametrize("name", sorted(DETAILS))
def test_a_create_with_null_for_what_may_be_null_equals_one_without_it(name: str) -> None:
    task_type, detail = DETAILS[name]
    body = {"task_type": task_type} | EVERY_TASK | detail
    nullable = {member for member, said in SCHEMAS[name]["fields"].items() if said["nullable"]}
    # Of a choice between members, one has to stay.
    stays = {
        "CreateVideoGenerationTask": {"input_image_url"},
        "CreateImageAdjusterTask": {"target_width", "target_height"},
        "CreateRefineTask": {"target_width"},
    }
    nullable -= stays.get(name, set())
    null, absent = task_pb2.CreateTask(), task_pb2.CreateTask()
    assert decoded(null, {member: None if member in nullable else body[member] for member in body}).violations == []
    assert decoded(absent, {member: body[member] for member in body if member not in nullable}).violations == []
    assert null == absent
    for task in (null, absent):
        apply_defaults(task)
        protovalidate.validate(task)


@pytest.mark.parametrize("detail", [field.name for field in task_pb2.Task.DESCRIPTOR.oneofs_by_name["detail"].fields])
def test_an_answer_prints_every_documented_member_of_its_type(detail: str) -> None:
    task = task_pb2.Task()
    getattr(task, detail).SetInParent()
    told = CODECS.of(task.DESCRIPTOR).encode(task)
    if detail in {"noop", "photo_detection"}:  # the mesh's own
        return
    documented = SCHEMAS[type(getattr(task, detail)).DESCRIPTOR.name]["fields"]
    assert set(told) == set(documented) | ADDED
    for member, said in documented.items():
        if said["nullable"]:
            assert told[member] is None, member
    for member in ("task_type", "priority", "retry_count", "progress"):
        assert told[member] is not None
