"""Names and spellings of enum values."""

from typing import Any

import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import background_fix_pb2, enums_pb2, worker_service_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from meshkit.spelling import ContractError, enum_names, enum_number, value_names, value_numbers

ENUMS = [
    enums_pb2.TaskStatus.DESCRIPTOR,
    enums_pb2.TaskType.DESCRIPTOR,
    enums_pb2.ProviderType.DESCRIPTOR,
    events_pb2.EventType.DESCRIPTOR,
    worker_service_pb2.JobKind.DESCRIPTOR,
    *background_fix_pb2.DESCRIPTOR.enum_types_by_name.values(),
]


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_spelling_and_number_are_inverse(enum: Any) -> None:
    names = enum_names(enum)
    specified = [value for value in enum.values if value.number]
    assert set(names.by_number) == {value.number for value in specified}
    for value in specified:
        assert enum_number(enum, names.by_number[value.number]) == value.number
        assert enum_number(enum, value.name) == value.number
    assert set(names.public) <= set(names.by_name)


@pytest.mark.parametrize("enum", ENUMS, ids=lambda enum: enum.name)
def test_names_in_the_code_drop_the_prefix_and_nothing_else(enum: Any) -> None:
    for name, number in value_numbers(enum).items():
        whole = enum.values_by_number[number].name
        assert whole.endswith(f"_{name}")
        assert whole.removesuffix(name).replace("_", "").lower() == enum.name.lower()
        assert value_names(enum)[number] == name


def test_the_contract_may_spell_in_lower_case() -> None:
    enum = events_pb2.EventType.DESCRIPTOR
    assert enum_names(enum).by_number[events_pb2.EVENT_TYPE_TASK_CREATED] == "task_created"
    assert value_names(enum)[events_pb2.EVENT_TYPE_TASK_CREATED] == "TASK_CREATED"


def test_unspecified_and_unknown_values_have_no_spelling() -> None:
    enum = enums_pb2.TaskStatus.DESCRIPTOR
    assert 0 not in enum_names(enum).by_number
    assert 0 not in value_names(enum)
    with pytest.raises(KeyError):
        enum_number(enum, "NOPE")


def test_two_values_of_one_spelling_contradict_each_other() -> None:
    file = descriptor_pb2.FileDescriptorProto(name="shade.proto", package="shade", syntax="proto3")
    enum = file.enum_type.add(name="Shade")
    for number, name in enumerate(("SHADE_UNSPECIFIED", "SHADE_RED", "RED")):
        enum.value.add(name=name, number=number)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    with pytest.raises(ContractError, match="two values are spelled RED"):
        enum_names(pool.FindEnumTypeByName("shade.Shade"))
