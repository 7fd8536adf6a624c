"""The contracts against the table of the documented surface: each task type, provider, event and enum, by field."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from atelier.events.v1 import events_pb2
from atelier.options.v1 import options_pb2
from atelier.tasks.v1 import background_fix_pb2, enums_pb2, providers_pb2, task_pb2, tasks_service_pb2
from atelier.training.v1 import lora_pb2, training_pb2
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

TABLE = json.loads((Path(__file__).parent / "documented_surface.json").read_text())
SCHEMAS: dict[str, Any] = TABLE["schemas"]
SCALARS = {
    FieldDescriptor.CPPTYPE_INT32: "integer",
    FieldDescriptor.CPPTYPE_INT64: "integer",
    FieldDescriptor.CPPTYPE_DOUBLE: "number",
    FieldDescriptor.CPPTYPE_BOOL: "boolean",
    FieldDescriptor.CPPTYPE_STRING: "string",
}
# One superset message serves both updates; this member belongs to the other one's EXPERIMENTAL_FAL.
BEYOND = {"GenerationTaskUpdate": {"fal_parameters"}}
# A task type of this mesh, beside the documented ones.
OWN_SCHEMAS = {"CreatePhotoDetectionTask", "PhotoDetectionTaskPublic"}
OWN_VALUES = {"TaskType": ["PHOTO_DETECTION"], "EventType": ["alert_status_update"]}
# What this mesh adds to every task, for callers that look for it.
ADDED = {"media_url", "media_urls", "warnings"}
ADDED_TO_EVENTS = {"TaskStatusEvent": {"media_url", "media_urls"}}
DEFAULTS_IN_PROSE: dict[str, dict[str, Any]] = {
    "CreateGenerationTask": {"width": 1024, "height": 1024},
    "CreateEditingTask": {"width": 1024, "height": 1024},
    "CreateBackgroundFixTask": {
        "edge_blur_sigma": 20.0,
        "light_threshold": 220,
        "mask_expansion_percentage": 0.005,
        "shadow_threshold": 150,
        "strategy": "color_shift",
    },
    "CreateImageAdjusterTask": {"tolerance": 0},
    "FashnStandardConfig": {"max_image_height": 2000},
    "FreepikMagnificPrecisionConfig": {"sharpen": 50, "smart_grain": 7, "ultra_detail": 30},
}
BOUNDS_IN_PROSE: dict[tuple[str, str], tuple[float, float]] = {
    ("CreateGenerationTask", "reference_image_strength"): (0, 100),
    ("CreateVideoGenerationTask", "cfg_scale"): (0, 2),
    ("CreateVideoGenerationTask", "duration_seconds"): (1, 60),
    ("CreateBackgroundFixTask", "light_threshold"): (0, 255),
    ("CreateBackgroundFixTask", "shadow_threshold"): (0, 255),
    ("CreateBackgroundFixTask", "mask_expansion_percentage"): (0, 1),
    ("CreateImageAdjusterTask", "margin_top"): (0, 1),
    ("CreateImageAdjusterTask", "margin_bottom"): (0, 1),
    ("CreateImageAdjusterTask", "margin_left"): (0, 1),
    ("CreateImageAdjusterTask", "margin_right"): (0, 1),
    ("CreateImageAdjusterTask", "tolerance"): (0, 1),
    ("FashnStandardConfig", "poll_interval"): (1, 60),
    ("FreepikMagnificConfig", "creativity"): (-10, 10),
    ("FreepikMagnificConfig", "hdr"): (-10, 10),
    ("FreepikMagnificConfig", "resemblance"): (-10, 10),
    ("FreepikMagnificConfig", "fractality"): (-10, 10),
    ("FreepikMagnificPrecisionConfig", "sharpen"): (0, 100),
    ("FreepikMagnificPrecisionConfig", "smart_grain"): (0, 100),
    ("FreepikMagnificPrecisionConfig", "ultra_detail"): (0, 100),
    ("VertexConfig", "temperature"): (0, 2),
    ("VertexConfig", "top_p"): (0, 1),
}


def presented(field: FieldDescriptor) -> options_pb2.FieldJson:
    return field.GetOptions().Extensions[options_pb2.field]


def presented_name(message: Descriptor) -> str:
    return message.GetOptions().Extensions[options_pb2.message].schema_name or message.name


def rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    return field.GetOptions().Extensions[validate_pb2.field]


def members(*messages: Descriptor) -> dict[str, FieldDescriptor]:
    """JSON members of messages that lie flat in one object, without unions that are flattened themselves."""
    found: dict[str, FieldDescriptor] = {}
    for message in messages:
        flat = {
            field.name
            for oneof in message.oneofs
            if oneof.GetOptions().Extensions[options_pb2.oneof].discriminator
            for field in oneof.fields
        }
        for field in message.fields:
            if field.name not in flat and not presented(field).hidden:
                found[presented(field).name or field.name] = field
    return found


def variants(message: Descriptor) -> Iterator[tuple[str, Descriptor]]:
    """Names and messages of the union that lies flat in a message."""
    for field in message.fields:
        if presented(field).variant and not presented(field).hidden:
            assert field.message_type is not None
            yield field.message_type.name, field.message_type


REQUESTS = {
    name: (members(task_pb2.CreateTask.DESCRIPTOR, detail), {"task_type"})
    for name, detail in variants(task_pb2.CreateTask.DESCRIPTOR)
    if name not in OWN_SCHEMAS
}
ANSWERS: dict[str, tuple[dict[str, FieldDescriptor], set[str]]] = {
    name: (members(task_pb2.Task.DESCRIPTOR, detail), {"task_type"})
    for name, detail in variants(task_pb2.Task.DESCRIPTOR)
    if name not in OWN_SCHEMAS
}
CONFIGS = {
    name: (members(detail), {"provider_type"}) for name, detail in variants(providers_pb2.ProviderConfig.DESCRIPTOR)
}
UPDATE = tasks_service_pb2.UpdateTaskRequest.DESCRIPTOR.fields_by_name["update"]
FILE = tasks_service_pb2.DESCRIPTOR
UPDATES: dict[str, tuple[dict[str, FieldDescriptor], set[str]]] = {
    "GenerationTaskUpdate": (members(task_pb2.TaskUpdate.DESCRIPTOR), set())
}
for shown in presented(UPDATE).shown_as:
    UPDATES[shown] = (members(FILE.pool.FindMessageTypeByName(f"{FILE.package}.{shown}")), set())
EVENTS: dict[str, tuple[dict[str, FieldDescriptor], set[str]]] = {
    name: (members(message), set())
    for name, message in events_pb2.DESCRIPTOR.message_types_by_name.items()
    if name in SCHEMAS
}
TRAININGS: dict[str, tuple[dict[str, FieldDescriptor], set[str]]] = {
    presented_name(message): (members(message), set())
    for message in (
        *training_pb2.DESCRIPTOR.message_types_by_name.values(),
        *lora_pb2.DESCRIPTOR.message_types_by_name.values(),
    )
    if presented_name(message) in SCHEMAS
}
ALL = {**REQUESTS, **ANSWERS, **CONFIGS, **UPDATES, **EVENTS, **TRAININGS}
ENUMS: dict[str, EnumDescriptor] = {
    **enums_pb2.DESCRIPTOR.enum_types_by_name,
    **background_fix_pb2.DESCRIPTOR.enum_types_by_name,
    **events_pb2.DESCRIPTOR.enum_types_by_name,
    **{name: enum for name, enum in training_pb2.DESCRIPTOR.enum_types_by_name.items() if name in SCHEMAS},
}


def spelled(field: FieldDescriptor) -> str:
    if field.enum_type is not None:
        kind = field.enum_type.name
    elif field.message_type is None:
        kind = SCALARS[field.cpp_type]
        if rules(field).string.uuid:
            kind = "string(uuid)"
    else:
        known = {"Struct": "object", "Timestamp": "string(date-time)", "ProviderConfig": "any"}
        kind = known[field.message_type.name]
    return f"array<{kind}>" if field.is_repeated else kind


def declared_optional(field: FieldDescriptor) -> bool:
    # A field declared `optional` stands alone in a oneof that the compiler makes for it.
    return field.containing_oneof is not None and field.containing_oneof.name == f"_{field.name}"


def nullable(field: FieldDescriptor) -> bool:
    if rules(field).required or presented(field).not_null:
        return False
    if field.is_repeated:
        return presented(field).empty == options_pb2.EMPTY_NULL
    return declared_optional(field)


def test_every_documented_schema_of_tasks_trainings_providers_and_events_has_a_message() -> None:
    wanted = {
        name
        for name in SCHEMAS
        if name.startswith(("TrainingTask", "LoRA", "AdminLoRA"))
        or name.endswith(("Event", "TaskPublic", "TaskPublicUpdate", "TaskUpdate"))
        or (name.startswith("Create") and name.endswith("Task"))
    }
    assert wanted | set(SCHEMAS["ProviderConfig"]["members"]) == set(ALL)


@pytest.mark.parametrize("name", sorted(ALL))
def test_a_schema_has_exactly_the_documented_members(name: str) -> None:
    fields, discriminators = ALL[name]
    added = ADDED if name in ANSWERS else ADDED_TO_EVENTS.get(name, set())
    assert set(fields) | discriminators == set(SCHEMAS[name]["fields"]) | BEYOND.get(name, added)


@pytest.mark.parametrize("name", sorted(ALL))
def test_members_are_null_where_the_document_says_so(name: str) -> None:
    fields, _ = ALL[name]
    documented = {field: said["nullable"] for field, said in SCHEMAS[name]["fields"].items() if field in fields}
    assert {field: nullable(fields[field]) for field in documented} == documented


@pytest.mark.parametrize("name", sorted(ALL))
def test_members_have_the_documented_types(name: str) -> None:
    fields, _ = ALL[name]
    documented = {
        field: said["type"]
        for field, said in SCHEMAS[name]["fields"].items()
        if field in fields and said["type"] is not None
    }
    found = {field: spelled(fields[field]) for field in documented}
    documented |= {field: "integer" for field, kind in documented.items() if kind == "TaskPriority"}
    # A reference by id is checked as one, though the document prints a plain string.
    plain = {
        field: "string" for field, kind in found.items() if kind == "string(uuid)" and documented[field] == "string"
    }
    assert found | plain == documented


@pytest.mark.parametrize("name", sorted(ALL))
def test_members_have_the_documented_defaults_and_bounds(name: str) -> None:
    fields, _ = ALL[name]
    for field, said in SCHEMAS[name]["fields"].items():
        if field not in fields:
            continue
        assert presented(fields[field]).read_only == said.get("read_only", False) or "read_only" not in said
        if "maximum" in said:
            assert bounds(fields[field]) == (said["minimum"], said["maximum"])
    for field, value in DEFAULTS_IN_PROSE.get(name, {}).items():
        assert json.loads(presented(fields[field]).default_value) == value
    for (schema, field), limits in BOUNDS_IN_PROSE.items():
        if schema == name:
            assert bounds(fields[field]) == limits


@pytest.mark.parametrize("member", sorted(SCHEMAS["TrainingTaskCreate"]["fields"]))
def test_a_training_has_the_documented_defaults_and_requires_its_trigger_word_alone(member: str) -> None:
    fields, said = TRAININGS["TrainingTaskCreate"][0], SCHEMAS["TrainingTaskCreate"]["fields"][member]
    default = presented(fields[member]).default_value
    assert (json.loads(default) if default else None) == said.get("default")
    assert rules(fields[member]).required == said["required"]


def test_a_training_is_made_of_nineteen_members_and_shows_fifty_one() -> None:
    assert len(TRAININGS["TrainingTaskCreate"][0]) == 19
    assert len(TRAININGS["TrainingTask"][0]) == 51


def bounds(field: FieldDescriptor) -> tuple[float, float]:
    kind = rules(field).WhichOneof("type")
    assert kind is not None
    found = getattr(rules(field), kind)
    return found.gte, found.lte


@pytest.mark.parametrize("name", sorted(ENUMS))
def test_an_enum_has_the_documented_values(name: str) -> None:
    enum = ENUMS[name]
    lower = enum.GetOptions().Extensions[options_pb2.enum].lower
    values = []
    for value in enum.values[1:]:
        if value.GetOptions().Extensions[options_pb2.value].hidden:
            continue
        plain = value.name.removeprefix(enum.values[0].name.removesuffix("UNSPECIFIED"))
        values.append(plain.lower() if lower else plain)
    assert values == SCHEMAS[name]["values"] + OWN_VALUES.get(name, [])


def test_a_schema_of_this_mesh_is_not_a_documented_one() -> None:
    served = {name for message in (task_pb2.CreateTask, task_pb2.Task) for name, _ in variants(message.DESCRIPTOR)}
    assert served >= OWN_SCHEMAS
    assert OWN_SCHEMAS.isdisjoint(SCHEMAS)
