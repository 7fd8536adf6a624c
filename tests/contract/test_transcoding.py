"""The transcoder against the real contracts: every message survives it, every route is served, and it is fast."""

import random
import time
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest
from atelier.tasks.v1 import task_pb2
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from meshkit.spelling import enum_names
from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding
from meshkit.transcoding.options import field_json, flattened, is_map
from meshkit.transcoding.requests import RequestDecoder, ResponseEncoder
from meshkit.transcoding.routes import Match, Route, RouteTable, compile_services, loc_of
from services.gateway.contracts import load_services, read_image

IMAGE = read_image()
PACKAGES = sorted({file.package for file in IMAGE.file if file.package.startswith("atelier.")})
SERVICES = load_services(IMAGE, PACKAGES)
ROUTES = list(compile_services(one.descriptor for one in SERVICES))
CODECS = Codecs()
MAX_DEPTH = 4


def presented() -> Iterator[Descriptor]:
    """Types of every body and answer."""
    seen: dict[str, Descriptor] = {}
    for route in ROUTES:
        for one in (route.body, route.response_body):
            if one is not None and one.message_type is not None:
                seen[one.message_type.full_name] = one.message_type
        if route.response_body is None:
            seen[route.response.full_name] = route.response
    yield from seen.values()


class Maker:
    """Makes messages that hold something in every field, by a seeded draw."""

    def __init__(self, seed: int) -> None:
        self._draw = random.Random(seed)

    def fill(self, message: Any, depth: int = 0) -> Any:
        descriptor = message.DESCRIPTOR
        flat = flattened(descriptor)
        chosen = self._draw.choice(list(flat.variants.values())).name if flat is not None else None
        message.SetInParent()
        for one in descriptor.fields:
            in_oneof = one.containing_oneof is not None and not one.containing_oneof.name.startswith("_")
            kept = not in_oneof and not field_json(one).hidden and not field_json(one).read_only
            if one.name == chosen or (kept and self._draw.random() < 0.7):
                self._set(message, one, depth)
        return message

    def _set(self, message: Any, one: FieldDescriptor, depth: int) -> None:
        if is_map(one):
            return
        if one.message_type is None:
            if one.is_repeated:
                getattr(message, one.name).extend([self._scalar(one), self._scalar(one)])
            else:
                setattr(message, one.name, self._scalar(one))
        elif depth < MAX_DEPTH:
            target = getattr(message, one.name)
            self._message(target.add() if one.is_repeated else target, depth + 1)

    def _message(self, target: Any, depth: int) -> None:
        kind = target.DESCRIPTOR.full_name
        if kind == "google.protobuf.Timestamp":
            target.seconds, target.nanos = self._draw.randrange(2**31), self._draw.randrange(1000) * 1_000_000
        elif kind == "google.protobuf.Struct":
            target.fields["text"].string_value = self._text()
            target.fields["number"].number_value = self._draw.choice([3, 0.25, -1e9])
            target.fields["list"].list_value.values.add().bool_value = True
            target.fields["null"].null_value = 0
        elif not kind.startswith("google."):
            self.fill(target, depth)

    def _scalar(self, one: FieldDescriptor) -> Any:
        if one.enum_type is not None:
            return self._draw.choice(list(enum_names(one.enum_type).by_number))
        if one.type == FieldDescriptor.TYPE_BYTES:
            return self._draw.randbytes(5)
        if one.cpp_type == FieldDescriptor.CPPTYPE_STRING:
            return self._text()
        if one.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
            return True
        if one.cpp_type in {FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT}:
            return self._draw.choice([0.5, 3.0, -2.25])
        return self._draw.randrange(1, 2**31 - 1)

    def _text(self) -> str:
        return self._draw.choice(["a", "ü", "line\nbreak", '"', "🧵", "x" * 40])


@pytest.mark.parametrize("descriptor", list(presented()), ids=lambda one: one.name)
def test_every_presented_message_survives_json(descriptor: Descriptor) -> None:
    codec = CODECS.of(descriptor)
    make = message_factory.GetMessageClass(descriptor)
    for seed in range(40):
        message = Maker(seed).fill(make())
        text = orjson.dumps(codec.encode(message))
        again, decoding = make(), Decoding(strict=True)
        codec.decode(again, orjson.loads(text), ("body",), decoding)
        assert not decoding.violations
        assert orjson.loads(orjson.dumps(codec.encode(again))) == orjson.loads(text)


def test_every_binding_is_routed_to_its_method() -> None:
    table = RouteTable(ROUTES)
    for route in ROUTES:
        path = "/".join("x" if one == "*" else one for one in route.template.segments)
        found = table.match(route.method, f"/{path}")
        assert isinstance(found, Match)
        assert found.route is route


@pytest.mark.parametrize("route", ROUTES, ids=lambda one: one.name)
def test_every_route_compiles(route: Route) -> None:
    RequestDecoder(route, CODECS)
    ResponseEncoder(route, CODECS)


@pytest.mark.parametrize("route", ROUTES, ids=lambda one: one.name)
def test_every_field_of_a_request_has_a_place_that_a_caller_knows(route: Route) -> None:
    for one in route.request.fields:
        if not field_json(one).hidden:
            assert loc_of(route, one.name)[0] in {"path", "query", "body"}


def test_every_contract_with_a_service_is_loaded() -> None:
    declared = {f"{file.package}.{one.name}" for file in _ours() for one in file.service}
    assert declared == {one.descriptor.full_name for one in SERVICES}


def _ours() -> list[FileDescriptorProto]:
    return [file for file in IMAGE.file if file.package.startswith("atelier.")]


def microseconds(work: Callable[[], object]) -> float:
    """The quickest of several rounds: what the work takes when nothing else is in its way."""
    rounds = []
    for _ in range(15):
        started = time.perf_counter()
        for _ in range(100):
            work()
        rounds.append((time.perf_counter() - started) * 1e4)
    return min(rounds)


@pytest.mark.bench
def test_the_codec_is_fast() -> None:
    body = orjson.dumps(
        {
            "task_type": "GENERATION",
            "prompt": "a red dress",
            "origin_instance": "production",
            "width": 512,
            "height": 512,
            "seed": 42,
            "config": {"a": 1, "b": [1, {"c": "x"}]},
            "provider_type": "LOCAL",
            "provider_config": {"rembg_model": "u2net"},
            "subject_model_path": "identities/ada.safetensors",
            "subject_lora_weight": 0.8,
        }
    )
    create = CODECS.of(task_pb2.CreateTask.DESCRIPTOR)
    task = Maker(1).fill(task_pb2.Task())
    encoder = CODECS.of(task_pb2.Task.DESCRIPTOR)
    decode = microseconds(lambda: create.decode(task_pb2.CreateTask(), orjson.loads(body), ("body",), Decoding()))
    encode = microseconds(lambda: orjson.dumps(encoder.encode(task)))
    assert decode < 150, "microseconds to read a create"
    assert encode < 100, "microseconds to print a task"
