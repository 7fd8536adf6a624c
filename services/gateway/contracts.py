"""Which services there are: read from the descriptor image that is generated with the stubs.

A new service, method or message appears here once `gen/` is made anew; nothing in the gateway names one.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

IMAGE = "descriptors.binpb"


@dataclass(frozen=True, slots=True)
class ContractService:
    """A service of the contracts.

    Attributes:
        package: Its proto package.
        descriptor: What it offers.
        stub: Its generated client class.
    """

    package: str
    descriptor: ServiceDescriptor
    stub: Callable[[Any], Any]


def read_image() -> FileDescriptorSet:
    """Return every contract with its comments, as descriptors."""
    return FileDescriptorSet.FromString((files("atelier") / IMAGE).read_bytes())


def load_services(image: FileDescriptorSet, packages: Collection[str]) -> list[ContractService]:
    """Return the services of packages, in the order of the contracts."""
    for file in image.file:
        # A member may hold what another service's contract says, whether or not that one is served.
        importlib.import_module(_messages(file))
    return [service for file in image.file if file.package in packages for service in _services_of(file)]


def _services_of(file: FileDescriptorProto) -> list[ContractService]:
    if not file.service:
        return []
    messages = importlib.import_module(_messages(file))
    clients = importlib.import_module(f"{_messages(file)}_grpc")
    return [
        ContractService(
            file.package, messages.DESCRIPTOR.services_by_name[one.name], getattr(clients, f"{one.name}Stub")
        )
        for one in file.service
    ]


def _messages(file: FileDescriptorProto) -> str:
    return f"{file.name.removesuffix('.proto').replace('/', '.')}_pb2"
