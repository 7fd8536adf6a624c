"""The served document says what the gateway does: examples pass its schemas, answers are what it promises."""

from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2
from google.protobuf.timestamp_pb2 import Timestamp
from schemathesis.core.result import Ok

from meshkit.transcoding.codec import Codecs
from tests.contract.openapi_reading import Document
from tests.contract.test_lossless_json import DETAILS, EVERY_TASK

CODECS = Codecs()
TASKS = "/api/v1/tasks/"


def validator(document: Document, schema: dict[str, Any]) -> jsonschema_rs.Validator:
    # References lead to `#/components`, so that the components stand beside the schema.
    whole = {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
    return jsonschema_rs.validator_for({**whole, "components": document.raw["components"]}, validate_formats=True)


@pytest.fixture(scope="session")
def create(document: Document) -> jsonschema_rs.Validator:
    operation = document.operations()["POST", TASKS]
    return validator(document, operation["requestBody"]["content"]["application/json"]["schema"])


@pytest.fixture(scope="session")
def answer(document: Document) -> jsonschema_rs.Validator:
    operation = document.operations()["GET", "/api/v1/tasks/{task_id}"]
    return validator(document, operation["responses"]["200"]["content"]["application/json"]["schema"])


def body_of(name: str) -> dict[str, Any]:
    task_type, detail = DETAILS[name]
    config = {"provider_type": EVERY_TASK["provider_type"], **EVERY_TASK["provider_config"]}
    return {"task_type": task_type} | EVERY_TASK | {"provider_config": config} | detail


@pytest.mark.parametrize("name", sorted(DETAILS))
def test_a_request_with_every_member_is_one_that_the_document_allows(
    create: jsonschema_rs.Validator, name: str
) -> None:
    assert [error.message for error in create.iter_errors(body_of(name))] == []


@pytest.mark.parametrize(
    "change",
    [
        {"width": 0},
        {"width": 100_000},
        {"width": "wide"},
        {"prompt": None},
        {"prompt": ""},
        {"task_type": "PAINTING"},
        {"origin_instance": 7},
        {"provider_type": "NOBODY"},
        {"reference_image_strength": 101},
    ],
    ids=str,
)
def test_a_bad_request_is_one_that_the_document_forbids(
    create: jsonschema_rs.Validator, change: dict[str, Any]
) -> None:
    assert not create.is_valid(body_of("CreateGenerationTask") | change)


def fresh(detail: str) -> task_pb2.Task:
    task = task_pb2.Task(
        id="11111111-2222-4333-8444-555555555555", status=enums_pb2.TASK_STATUS_PENDING, origin_instance="a"
    )
    for moment in (task.created_at, task.updated_at):
        moment.CopyFrom(Timestamp(seconds=1_800_000_000, nanos=5_000_000))
    public = getattr(task, detail)
    public.SetInParent()
    if detail == "background_fix":
        public.strategy = 1
    return task


@pytest.mark.parametrize("name", sorted(DETAILS))
def test_an_answer_is_one_that_the_document_promises(answer: jsonschema_rs.Validator, name: str) -> None:
    task = fresh(DETAILS[name][0].lower())
    told = CODECS.of(task_pb2.Task.DESCRIPTOR).encode(task)
    assert [error.message for error in answer.iter_errors(told)] == []


def test_a_list_of_all_types_is_one_that_the_document_promises(document: Document) -> None:
    operation = document.operations()["GET", TASKS]
    schema = validator(document, operation["responses"]["200"]["content"]["application/json"]["schema"])
    tasks = tasks_service_pb2.ListTasksResponse(tasks=[fresh(task_type.lower()) for task_type, _ in DETAILS.values()])
    told = [CODECS.of(task_pb2.Task.DESCRIPTOR).encode(task) for task in tasks.tasks]
    assert [error.message for error in schema.iter_errors(told)] == []


def test_schemathesis_reads_every_operation_of_the_document(document: Document) -> None:
    found = schemathesis.openapi.from_dict(document.raw)
    read = [one.ok() for one in found.get_all_operations() if isinstance(one, Ok)]
    operations = {(one.method.upper(), one.path) for one in read}
    assert operations == set(document.operations())
