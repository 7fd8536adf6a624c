"""The gateway's own OpenAPI document against the table of the documented surface: all of it is served."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.contract.openapi_reading import Document, answer_schema, request_schema

TABLE = json.loads((Path(__file__).parent / "documented_surface.json").read_text())
ENDPOINTS: dict[tuple[str, str], dict[str, Any]] = {(one["method"], one["path"]): one for one in TABLE["endpoints"]}
SCHEMAS: dict[str, Any] = TABLE["schemas"]

SERVED = sorted(ENDPOINTS)
# Parameters that are served beyond the documented ones, with the reason.
BEYOND_PARAMETERS = {
    # The width of a thumbnail.
    ("GET", "/api/v1/storage/images/{path}"): {"w"},
    ("HEAD", "/api/v1/storage/images/{path}"): {"w"},
    ("GET", "/api/v1/tasks/"): {"include_deleted"},  # lists of workflows take it, and cleaned-up tasks are hidden
    ("GET", "/api/v1/tasks/generation"): {"include_deleted"},
    # What trainings are asked for beside the documented members: an adapter to start from, repetition, masks, order.
    ("POST", "/api/v1/training/"): {"masked_loss", "priority", "seed", "start_from"},
}
# Members beyond the documented ones. One message serves both updates.
BEYOND_MEMBERS = {
    "GenerationTaskUpdate": {"fal_parameters"},
    # What users of workflows ask for beside the documented members; all of it optional.
    "WorkflowStepDefinition": {"job_kind", "requires_approval", "timeout_seconds", "when"},
}
# A task type of this mesh, after the documented ones.
OWN_TASKS = {"CreatePhotoDetectionTask", "PhotoDetectionTaskPublic", "PhotoDetectionTaskPublic[]"}
OWN_VALUES = {"TaskType": ["PHOTO_DETECTION"]}
# What this mesh adds to a task of any type.
BEYOND_TASKS = {"media_url", "media_urls", "warnings"}


def _schemas_served() -> list[str]:
    served = {
        name.removesuffix("[]") for key in SERVED for part in ("request", "response") for name in ENDPOINTS[key][part]
    }
    served |= set(SCHEMAS["ProviderConfig"]["members"]) | {"HTTPValidationError", "ValidationError"}
    return sorted(served)


SERVED_SCHEMAS = _schemas_served()
SERVED_ENUMS = [
    "AnatomyIssue",
    "BackgroundFixStrategy",
    "CaptioningStrategy",
    "EntityType",
    "ErrorCategory",
    "Framing",
    "Gender",
    "ProviderType",
    "TaskStatus",
    "TaskType",
    "TrainingStatus",
    "TrainingType",
    "ViewAngle",
]


def test_the_table_is_whole() -> None:
    assert len(TABLE["endpoints"]) == len(ENDPOINTS) == 44
    assert len(SCHEMAS) == 113


@pytest.mark.parametrize("key", SERVED, ids=" ".join)
def test_a_documented_endpoint_is_served_under_its_title(document: Document, key: tuple[str, str]) -> None:
    operations = document.operations()
    assert key in operations
    assert operations[key]["summary"] == ENDPOINTS[key]["title"]


@pytest.mark.parametrize("key", SERVED, ids=" ".join)
def test_a_documented_endpoint_asks_for_a_token(gateway: Any, key: tuple[str, str]) -> None:
    # Health alone is open to all; it says here that the other services do not answer.
    assert gateway.statuses[key] == (503 if key == ("GET", "/health") else 401)


@pytest.mark.parametrize("key", SERVED, ids=" ".join)
def test_an_endpoint_takes_the_documented_parameters(document: Document, key: tuple[str, str]) -> None:
    taken = {one["name"]: one for one in document.operations()[key].get("parameters", []) if one["in"] != "header"}
    documented = {one["name"]: one for one in ENDPOINTS[key]["parameters"]}
    assert set(taken) == set(documented) | BEYOND_PARAMETERS.get(key, set())
    for name, said in documented.items():
        found, schema = taken[name], taken[name]["schema"]
        assert found["in"] == said["in"]
        assert found.get("required", False) == (said["in"] == "path")
        assert schema.get("default") == said.get("default"), name
        kind, _ = document.spelled(schema)
        # An id is documented as a plain string, and a nullable one's type is not printed at all.
        assert said["type"] in {None, kind} or kind == f"{said['type']}(uuid)", name


@pytest.mark.parametrize("key", SERVED, ids=" ".join)
def test_an_endpoint_takes_and_gives_the_documented_schemas(document: Document, key: tuple[str, str]) -> None:
    operation, said = document.operations()[key], ENDPOINTS[key]
    assert document.names(request_schema(operation)) - OWN_TASKS == set(said["request"])
    if said["response"]:
        assert document.names(answer_schema(operation)) - OWN_TASKS == set(said["response"])


@pytest.mark.parametrize("key", SERVED, ids=" ".join)
def test_an_endpoint_documents_its_errors(document: Document, key: tuple[str, str]) -> None:
    answers = document.operations()[key]["responses"]
    if key != ("GET", "/health"):
        assert "401" in answers
    if ENDPOINTS[key]["parameters"] or ENDPOINTS[key]["request"]:
        assert "422" in answers


@pytest.mark.parametrize("name", SERVED_SCHEMAS)
def test_a_served_schema_is_the_documented_one(document: Document, name: str) -> None:
    found, documented = document.members(name), SCHEMAS[name]["fields"]
    added = BEYOND_TASKS if name.endswith("TaskPublic") else set()
    assert set(found) == set(documented) | BEYOND_MEMBERS.get(name, added)
    for member, said in documented.items():
        one = found[member]
        assert one.nullable == said["nullable"], f"{name}.{member} nullable"
        if said["type"] not in {None, "any", "array<any>"} and member not in {"task_type", "provider_type"}:
            kinds = {said["type"], f"{said['type']}(uuid)"}
            if SCHEMAS.get(said["type"], {}).get("kind") == "integer":
                kinds.add("integer")
            assert one.type in kinds, f"{name}.{member} type"
        if "default" in said and member != "task_type":
            assert one.schema.get("default", said["default"]) == said["default"], f"{name}.{member} default"
        if said.get("read_only"):
            assert one.schema["readOnly"] is True
        if "maximum" in said:
            limits = json.dumps(one.schema)
            assert f'"maximum": {said["maximum"]:g}' in limits
            assert f'"minimum": {said["minimum"]:g}' in limits


@pytest.mark.parametrize("name", SERVED_SCHEMAS)
def test_a_discriminator_allows_its_own_variant_alone(document: Document, name: str) -> None:
    members = document.members(name)
    if name.endswith("Config"):
        assert members["provider_type"].schema["const"] in SCHEMAS["ProviderType"]["values"]
    elif name.endswith(("Task", "TaskPublic")) and name != "TrainingTask":  # a training is of no task type
        assert members["task_type"].schema["const"] in SCHEMAS["TaskType"]["values"]


@pytest.mark.parametrize("name", SERVED_ENUMS)
def test_a_served_enum_has_the_documented_values(document: Document, name: str) -> None:
    assert document.schemas[name]["enum"] == SCHEMAS[name]["values"] + OWN_VALUES.get(name, [])


def test_a_create_documents_what_it_requires_and_what_it_defaults_to(document: Document) -> None:
    members = document.members("CreateGenerationTask")
    assert {name for name, one in members.items() if one.required} == {"task_type", "origin_instance", "prompt"}
    assert members["width"].schema["default"] == 1024
    assert document.members("CreateBackgroundFixTask")["strategy"].schema["default"] == "color_shift"


def test_a_create_marks_the_members_that_have_a_newer_name(document: Document) -> None:
    members = document.members("CreateEditingTask")
    former = {"base_image_data", "base_image_url", "reference_image_data", "reference_image_url"}
    assert {name for name, one in members.items() if one.schema.get("deprecated")} == former


def test_what_tests_and_benchmarks_alone_use_is_not_documented(document: Document) -> None:
    text = json.dumps(document.raw)
    assert "NOOP" not in text
    assert "Noop" not in text


def test_every_reference_in_the_document_resolves(document: Document) -> None:
    def walk(node: object) -> None:
        if isinstance(node, dict):
            if isinstance(node.get("$ref"), str):
                assert node["$ref"].removeprefix("#/components/schemas/") in document.schemas
            for value in node.values():
                walk(value)
        elif isinstance(node, list):
            for value in node:
                walk(value)

    walk(document.raw)


def test_every_member_and_operation_is_described(document: Document) -> None:
    for key, operation in document.operations().items():
        assert operation.get("description"), key
    for name in SERVED_SCHEMAS:
        for member, one in document.members(name).items():
            if member not in {"task_type", "provider_type"} and name not in {"HTTPValidationError", "ValidationError"}:
                assert one.schema.get("description"), f"{name}.{member}"
