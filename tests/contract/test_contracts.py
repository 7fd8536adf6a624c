"""What holds for every contract: enums, RPCs, scopes, unions, defaults, validation rules, generation, compatibility."""

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atelier
import protovalidate
import pytest
from atelier.options.v1 import options_pb2
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, message_factory
from google.protobuf.descriptor import (
    Descriptor,
    EnumDescriptor,
    FieldDescriptor,
    FileDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)
from google.protobuf.message import Message

from tests.releases import unpack_last_release

ROOT = Path(__file__).resolve().parent.parent.parent
BUF = Path(sysconfig.get_path("scripts")) / "buf"
# Eleven that are documented, and one of this mesh.
TYPES = 12


def files() -> list[FileDescriptor]:
    names = [found.name for found in pkgutil.walk_packages(atelier.__path__, "atelier.") if found.name.endswith("_pb2")]
    # KEDA's contract is not ours to shape.
    names = [name for name in names if not name.startswith("atelier.keda.")]
    found = [importlib.import_module(name).DESCRIPTOR for name in sorted(names)]
    assert all(isinstance(one, FileDescriptor) for one in found)
    return found


def nested(message: Descriptor) -> Iterator[Descriptor]:
    yield message
    for inner in message.nested_types:
        yield from nested(inner)


FILES = files()
MESSAGES: list[Descriptor] = [
    found for file in FILES for top in file.message_types_by_name.values() for found in nested(top)
]
ENUMS: list[EnumDescriptor] = [enum for file in FILES for enum in file.enum_types_by_name.values()]
SERVICES: list[ServiceDescriptor] = [service for file in FILES for service in file.services_by_name.values()]
METHODS: list[MethodDescriptor] = [method for service in SERVICES for method in service.methods]
FIELDS: list[FieldDescriptor] = [field for message in MESSAGES for field in message.fields]


def presented(field: FieldDescriptor) -> options_pb2.FieldJson:
    return field.GetOptions().Extensions[options_pb2.field]


def owner(field: FieldDescriptor) -> Descriptor:
    assert field.containing_type is not None
    return field.containing_type


def names(items: list) -> list[str]:  # type: ignore[type-arg]  # any descriptor with a full name
    return [item.full_name for item in items]


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "_", name).lower()


def message_named(name: str) -> Descriptor:
    return next(message for message in MESSAGES if message.full_name == name)


@pytest.mark.parametrize("enum", ENUMS, ids=names(ENUMS))
def test_every_enum_value_carries_its_enums_prefix_and_zero_is_unspecified(enum: EnumDescriptor) -> None:
    prefix = snake(enum.name).upper() + "_"
    assert all(value.name.startswith(prefix) for value in enum.values)
    zero = enum.values_by_number[0]
    assert zero.name in {prefix + "UNSPECIFIED", prefix + "NULL"}


@pytest.mark.parametrize("enum", ENUMS, ids=names(ENUMS))
def test_the_json_spellings_of_an_enum_are_unique(enum: EnumDescriptor) -> None:
    prefix = snake(enum.name).upper() + "_"
    chosen = [value.GetOptions().Extensions[options_pb2.value].name for value in enum.values]
    spelled = [name or value.name.removeprefix(prefix) for name, value in zip(chosen, enum.values, strict=True)]
    assert len({name.lower() for name in spelled}) == len(spelled)


def test_every_rpc_has_messages_of_its_own() -> None:
    for method in METHODS:
        assert method.input_type.name == f"{method.name}Request"
        assert method.output_type.name == f"{method.name}Response"
    used = [method.input_type.full_name for method in METHODS] + [method.output_type.full_name for method in METHODS]
    assert len(used) == len(set(used))


@pytest.mark.parametrize("method", METHODS, ids=names(METHODS))
def test_every_rpc_names_the_scope_it_takes(method: MethodDescriptor) -> None:
    assert method.GetOptions().Extensions[options_pb2.method].scope != options_pb2.SCOPE_UNSPECIFIED


@pytest.mark.parametrize("method", METHODS, ids=names(METHODS))
def test_an_rpc_confined_to_a_variant_names_one_of_its_answers(method: MethodDescriptor) -> None:
    variant = method.GetOptions().Extensions[options_pb2.method].variant
    if variant:
        (answer,) = [field for field in method.output_type.fields if field.message_type is not None]
        assert answer.message_type is not None
        assert variant in {presented(field).variant for field in answer.message_type.fields}


def test_a_flattened_oneof_has_messages_with_unique_variants_that_clash_with_no_sibling() -> None:
    seen = 0
    for message in MESSAGES:
        for oneof in message.oneofs:
            discriminator = oneof.GetOptions().Extensions[options_pb2.oneof].discriminator
            if not discriminator:
                assert not any(presented(field).variant for field in oneof.fields)
                continue
            seen += 1
            variants = [presented(field).variant for field in oneof.fields]
            assert all(variants), f"{oneof.full_name}: every member names its variant"
            assert len(set(variants)) == len(variants)
            siblings = [field for field in message.fields if field.containing_oneof is not oneof]
            outer = {field.name for field in siblings if not presented(field).hidden}
            for field in oneof.fields:
                assert field.message_type is not None, f"{field.full_name}: a variant is a message"
                inner = {one.name for one in field.message_type.fields if not presented(one).hidden}
                assert not inner & (outer | {discriminator}), f"{field.full_name} repeats members of {message.name}"
    assert seen == 4


def test_a_discriminator_is_taken_from_a_sibling_that_exists() -> None:
    for field in FIELDS:
        sibling = presented(field).discriminator_from
        if sibling:
            if presented(field).holds and sibling in {
                oneof.GetOptions().Extensions[options_pb2.oneof].discriminator for oneof in owner(field).oneofs
            }:
                continue
            (found,) = [one for one in owner(field).fields if one.name == sibling]
            assert found.enum_type is not None
            assert found.enum_type.name == ("TaskType" if presented(field).holds else "ProviderType")


def test_a_field_shown_as_other_messages_names_messages_of_its_package() -> None:
    for field in FIELDS:
        for name in presented(field).shown_as:
            shown = message_named(f"{owner(field).file.package}.{name}")
            assert field.message_type is not None
            for one in shown.fields:
                carried = field.message_type.fields_by_name[one.name]
                assert (carried.type, carried.is_repeated) == (one.type, one.is_repeated), one.full_name


SCALARS: dict[int, type] = {
    FieldDescriptor.CPPTYPE_INT32: int,
    FieldDescriptor.CPPTYPE_INT64: int,
    FieldDescriptor.CPPTYPE_DOUBLE: float,
    FieldDescriptor.CPPTYPE_FLOAT: float,
    FieldDescriptor.CPPTYPE_BOOL: bool,
    FieldDescriptor.CPPTYPE_STRING: str,
    FieldDescriptor.CPPTYPE_ENUM: str,
}
DEFAULTED = [field for field in FIELDS if presented(field).default_value]


@pytest.mark.parametrize("field", DEFAULTED, ids=names(DEFAULTED))
def test_every_default_is_a_value_that_the_field_takes(field: FieldDescriptor) -> None:
    value: Any = json.loads(presented(field).default_value)
    if field.is_repeated:
        assert isinstance(value, list)
        return
    assert field.has_presence, "a default needs to know that the field is absent"
    kind = SCALARS[field.cpp_type]
    assert isinstance(value, int if kind is float and isinstance(value, int) else kind)
    assert isinstance(value, bool) == (kind is bool)
    message = message_factory.GetMessageClass(owner(field))()
    if field.enum_type is not None:
        prefix = snake(field.enum_type.name).upper() + "_"
        value = field.enum_type.values_by_name[prefix + str(value).upper()].number
    setattr(message, field.name, value)
    assert field.full_name not in broken(message), "the default breaks the field's own rule"


def broken(message: Message) -> set[str]:
    """Full names of the top-level fields of a message whose own rules do not hold."""
    try:
        protovalidate.validate(message)
    except protovalidate.ValidationError as error:
        found = [one.proto.field for one in error.violations if one.proto.field is not None]
        paths = [[element.field_name for element in path.elements] for path in found]
        return {f"{message.DESCRIPTOR.full_name}.{path[0]}" for path in paths if len(path) == 1}
    return set()


def test_a_default_and_required_exclude_each_other() -> None:
    for field in FIELDS:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        assert not (rules.required and presented(field).default_value), field.full_name
        assert not (rules.required and presented(field).not_null), f"{field.full_name}: required says it already"


@pytest.mark.parametrize("message", MESSAGES, ids=names(MESSAGES))
def test_the_validation_rules_of_every_message_compile(message: Descriptor) -> None:
    # A rule that does not compile raises CompilationError, which is no ValidationError.
    broken(message_factory.GetMessageClass(message)())


def test_every_field_that_takes_a_file_is_a_string() -> None:
    uploads = [field for field in FIELDS if presented(field).upload]
    assert len(uploads) == 16
    assert all(field.cpp_type == FieldDescriptor.CPPTYPE_STRING for field in uploads)


def test_the_unions_of_tasks_agree_with_the_task_types() -> None:
    task_type = next(enum for enum in ENUMS if enum.name == "TaskType")
    numbers = {
        value.name.removeprefix("TASK_TYPE_"): 100 + value.number
        for value in task_type.values
        if value.number and value.name != "TASK_TYPE_NOOP"
    }
    assert len(numbers) == TYPES
    for name in ("CreateTask", "Task", "TaskResult"):
        detail = message_named(f"atelier.tasks.v1.{name}").oneofs_by_name["detail"]
        assert {field.name.upper(): field.number for field in detail.fields if field.name != "noop"} == numbers
        if name != "TaskResult":
            assert all(presented(field).variant == field.name.upper() for field in detail.fields)


def test_the_union_of_provider_settings_agrees_with_the_provider_types() -> None:
    provider_type = next(enum for enum in ENUMS if enum.name == "ProviderType")
    config = message_named("atelier.tasks.v1.ProviderConfig").oneofs_by_name["config"]
    expected = {value.number: value.name.removeprefix("PROVIDER_TYPE_") for value in provider_type.values[1:]}
    assert {field.number: presented(field).variant for field in config.fields} == expected


def test_a_result_carries_what_a_task_shows() -> None:
    task, result = (
        message_named(f"atelier.tasks.v1.{name}").oneofs_by_name["detail"] for name in ("Task", "TaskResult")
    )
    assert {field.number: field.message_type for field in task.fields} == {
        field.number: field.message_type for field in result.fields
    }


def test_no_field_that_holds_a_secret_or_a_row_id_of_the_scheduler_is_shown() -> None:
    task = message_named("atelier.tasks.v1.Task")
    for name in ("queue_name", "version", "attempt", "is_deleted", "deleted_at"):
        assert presented(task.fields_by_name[name]).hidden


def test_the_generated_code_is_current() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "generate_protos.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["lint"],
        ["format", "--diff", "--exit-code", "proto"],
        ["breaking", "proto", "--against", "proto/baseline.binpb"],
    ],
    ids=["lint", "format", "breaking"],
)
def test_the_contracts_pass_buf(arguments: list[str]) -> None:
    done = subprocess.run([BUF, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_baseline_is_what_the_last_release_promised(tmp_path: Path) -> None:
    release = unpack_last_release(tmp_path / "release")
    for new in ("proto/baseline.binpb", "proto"):
        arguments = [str(BUF), "breaking", new, "--against", str(release / "proto")]
        done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_image_carries_the_comments_that_become_descriptions() -> None:
    image = descriptor_pb2.FileDescriptorSet.FromString((ROOT / "gen" / "atelier" / "descriptors.binpb").read_bytes())
    ours = {file.name: file for file in image.file if file.package.startswith("atelier.")}
    assert len(ours) == len(FILES)
    for file in ours.values():
        assert any(location.leading_comments for location in file.source_code_info.location), file.name
