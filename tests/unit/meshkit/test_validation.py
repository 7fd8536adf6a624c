import math
from typing import Any

import pytest
from atelier.options.v1 import options_pb2
from atelier.tasks.v1 import enums_pb2, generation_pb2, task_pb2, worker_service_pb2
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.worker_service_pb2 import AttemptRef
from atelier.workflows.v1 import workflows_service_pb2 as workflows
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

from meshkit.errors import ErrorKind, MeshError
from meshkit.freeform import MAX_DEPTH, FreeFormLimits
from meshkit.validation import apply_defaults, check

ID = "00000000-0000-4000-8000-000000000000"
Field = descriptor_pb2.FieldDescriptorProto


def violations(message: Any) -> Any:
    with pytest.raises(MeshError) as caught:
        check(message)
    assert caught.value.kind is ErrorKind.INVALID
    return {(v.path, v.type) for v in caught.value.violations}


def create(**task: Any) -> tasks.CreateTaskRequest:
    task = {"origin_instance": "i", "generation": {"prompt": "a red dress"}} | task
    request = tasks.CreateTaskRequest(task=task_pb2.CreateTask(**task))
    apply_defaults(request)
    return request


def test_a_sound_request_passes() -> None:
    check(create())


def test_a_missing_member_is_named_by_its_path() -> None:
    assert ("task", "missing") in violations(tasks.CreateTaskRequest())


def test_a_nested_member_is_named_by_its_path() -> None:
    request = create(generation={"prompt": "x", "width": 100_000})
    (path, kind) = next(iter(violations(request)))
    assert path == "task.generation.width"
    assert kind in {"greater_than_equal", "less_than_equal"}


def test_an_element_of_a_list_is_named_by_its_index() -> None:
    request = worker_service_pb2.ReleaseRequest(
        session_id=ID, refs=[AttemptRef(job_id=ID, attempt=1), AttemptRef(job_id="x")]
    )
    assert violations(request) == {("refs[1].job_id", "uuid_parsing"), ("refs[1].attempt", "greater_than_equal")}


def test_an_empty_text_is_told_in_plain_words() -> None:
    with pytest.raises(MeshError, match=r"^task\.generation\.prompt: must not be empty$"):
        check(create(generation={"prompt": ""}))


def test_the_first_violation_makes_the_message() -> None:
    with pytest.raises(MeshError, match="task_id: must be a valid UUID"):
        check(tasks.GetTaskRequest(task_id="x"))


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"origin_zone": "a\0"}, "task.origin_zone"),
        ({"generation": {"prompt": "a\0b"}}, "task.generation.prompt"),
        ({"active_provider_capabilities": ["LORA", "a\0"]}, "task.active_provider_capabilities[1]"),
    ],
)
def test_a_nul_is_refused_in_any_string(change: Any, path: Any) -> None:
    assert violations(create(**change)) == {(path, "string_contains_nul")}


@pytest.mark.parametrize("content", [{"k": "a\0"}, {"k\0": 1}, {"k": [{"deep": ["\0"]}]}])
def test_a_nul_is_refused_inside_free_json(content: Any) -> None:
    config = struct_pb2.Struct()
    config.update(content)
    assert violations(create(config=config)) == {("task.config", "string_contains_nul")}


def test_a_nul_in_bytes_is_data() -> None:
    progress = worker_service_pb2.Progress(ref=AttemptRef(job_id=ID, attempt=1), preview=b"\0\0")
    check(worker_service_pb2.ReportRequest(session_id=ID, progress=[progress]))


def test_defaults_fill_what_is_absent_and_only_that() -> None:
    request = tasks.ListTasksRequest(limit=7)
    apply_defaults(request)
    assert (request.skip, request.limit, request.include_deleted) == (0, 7, False)
    assert request.HasField("skip")
    assert not request.HasField("status")


def test_an_explicit_zero_is_not_absent() -> None:
    request = tasks.ListTasksRequest(limit=0)
    apply_defaults(request)
    assert request.limit == 0
    assert violations(request)


def test_defaults_reach_nested_messages_and_create_none() -> None:
    request = create()
    assert (request.task.generation.width, request.task.generation.height) == (1024, 1024)
    empty = tasks.CreateTaskRequest()
    apply_defaults(empty)
    assert not empty.HasField("task")


@pytest.fixture(scope="module")
def sample() -> Any:
    """A message with a default of every shape, added to the pool as generated code would."""
    file = descriptor_pb2.FileDescriptorProto(
        name="tests/validation_sample.proto", package="tests.validation", syntax="proto3",
        dependency=["atelier/options/v1/options.proto", "google/protobuf/struct.proto", "atelier/tasks/v1/enums.proto"],
    )  # fmt: skip
    message = file.message_type.add(name="Sample")

    def add(
        name: Any,
        kind: Any,
        default: Any,
        *,
        label: Any = Field.LABEL_OPTIONAL,
        type_name: Any = "",
        oneof: Any = None,
        optional: Any = False,
    ) -> None:
        field = message.field.add(name=name, number=len(message.field) + 1, type=kind, label=label)
        if type_name:
            field.type_name = type_name
        field.options.Extensions[options_pb2.field].default_value = default
        if optional:
            field.proto3_optional = True
            field.oneof_index = len(message.oneof_decl)
            message.oneof_decl.add(name=f"_{name}")
        elif oneof is not None:
            field.oneof_index = oneof

    message.oneof_decl.add(name="choice")
    add("one", Field.TYPE_STRING, '"x"', oneof=0)
    add("two", Field.TYPE_STRING, '"y"', oneof=0)
    add("names", Field.TYPE_STRING, '["a", "b"]', label=Field.LABEL_REPEATED)
    add("none", Field.TYPE_STRING, "[]", label=Field.LABEL_REPEATED)
    add("extra", Field.TYPE_MESSAGE, '{"a": 1}', type_name=".google.protobuf.Struct")
    add("status", Field.TYPE_ENUM, '"FAILED"', type_name=".atelier.tasks.v1.TaskStatus")
    add("text", Field.TYPE_STRING, '"unknown"')
    add("later", Field.TYPE_STRING, '"z"', optional=True)
    # proto3 asks for synthetic oneofs after the real ones, which the order above keeps.
    pool = descriptor_pool.Default()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tests.validation.Sample"))


def test_defaults_of_every_shape(sample: Any) -> None:
    message = sample()
    apply_defaults(message)
    assert list(message.names) == ["a", "b"]
    assert list(message.none) == []
    assert dict(message.extra) == {"a": 1}
    assert message.status == enums_pb2.TASK_STATUS_FAILED
    assert (message.text, message.later) == ("unknown", "z")


def test_a_default_never_chooses_a_member_of_a_oneof(sample: Any) -> None:
    message = sample()
    apply_defaults(message)
    assert message.WhichOneof("choice") is None


def test_defaults_leave_what_is_there(sample: Any) -> None:
    message = sample(names=["c"], text="t", later="", status=enums_pb2.TASK_STATUS_PENDING)
    message.extra.update({"b": 2})
    apply_defaults(message)
    assert (list(message.names), message.text, message.later) == (["c"], "t", "")
    assert dict(message.extra) == {"b": 2}
    assert message.status == enums_pb2.TASK_STATUS_PENDING


def test_defaults_twice_are_defaults_once(sample: Any) -> None:
    message = sample()
    apply_defaults(message)
    once = message.SerializeToString(deterministic=True)
    apply_defaults(message)
    assert message.SerializeToString(deterministic=True) == once


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_wherever_it_stands(number: float) -> None:
    task = task_pb2.CreateTask(
        origin_instance="i",
        generation=generation_pb2.CreateGenerationTask(
            prompt="x", reference_image_strength=number, style_lora_weight=number
        ),
    )
    task.config.update({"a": [{"b c": number}], "d": number})
    assert violations(tasks.CreateTaskRequest(task=task)) == {
        ("task.generation.reference_image_strength", "finite_number"),
        ("task.generation.style_lora_weight", "finite_number"),
        ('task.config.a[0]["b c"]', "finite_number"),
        ("task.config.d", "finite_number"),
    }
    request = workflows.CreateWorkflowRequest()
    step = request.workflow.steps.add(id="a")
    step.config.fields["x"].number_value = number
    step.for_each.items.values.add().number_value = number
    step.when.value.number_value = number
    request.workflow.config.fields["x"].number_value = number
    assert violations(request) >= {
        ("workflow.config.x", "finite_number"),
        ("workflow.steps[0].config.x", "finite_number"),
        ("workflow.steps[0].for_each.items[0]", "finite_number"),
        ("workflow.steps[0].when.value", "finite_number"),
    }


@pytest.mark.parametrize("number", [2.0**53 + 2, -(2.0**60), 1e300])
def test_a_number_of_a_free_form_member_that_may_have_lost_digits_is_refused(number: float) -> None:
    request = create()
    request.task.config.update({"seeds": [1, number]})
    assert violations(request) == {("task.config.seeds[1]", "number_not_exact")}
    request.task.config.update({"seeds": [1, 2.0**53, -(2.0**53), 0.1]})
    check(request)


def test_a_free_form_member_is_bounded_in_bytes_elements_and_depth() -> None:
    limits = FreeFormLimits(max_bytes=2000, max_elements=30)
    deep: Any = 1
    for _ in range(MAX_DEPTH):
        deep = [deep]
    for content, kind in (
        ({"a": "x" * 2000}, "too_large"),
        ({"a": [0] * 30}, "too_long"),
        ({"a": deep}, "too_deep"),
    ):
        request = create()
        request.task.config.update(content)
        with pytest.raises(MeshError) as caught:
            check(request, limits)
        assert [(one.path, one.type) for one in caught.value.violations] == [("task.config", kind)]
    request = create()
    request.task.config.update({"a": deep[0]})
    check(request, FreeFormLimits(max_elements=MAX_DEPTH))
