"""A small contract of the tests' own, compiled when they begin."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding
from meshkit.transcoding.routes import Route, compile_services

ROOT = Path(__file__).parents[3]


class Contract:
    """A compiled contract."""

    def __init__(self, image: FileDescriptorSet, name: str) -> None:
        self.image = image
        self._pool = descriptor_pool.DescriptorPool()
        for file in image.file:
            self._pool.Add(file)  # they come in the order of their imports
        self._file = self._pool.FindFileByName(name)

    def message(self, name: str) -> Descriptor:
        return self._file.message_types_by_name[name]

    def new(self, name: str, **fields: Any) -> Any:
        return message_factory.GetMessageClass(self.message(name))(**fields)

    @property
    def services(self) -> list[ServiceDescriptor]:
        return list(self._file.services_by_name.values())

    @property
    def routes(self) -> dict[str, Route]:
        return {f"{route.method} {route.rpc.name}": route for route in compile_services(self.services)}


def compile_contract(folder: Path, out: Path, name: str) -> Contract:
    includes = [f"-I{one}" for one in (folder, ROOT / "proto", ROOT / "third_party")]
    image = out / "image.binpb"
    made = [f"--descriptor_set_out={image}", "--include_imports", "--include_source_info"]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", *includes, *made, name], check=True, cwd=folder)
    return Contract(FileDescriptorSet.FromString(image.read_bytes()), name)


@pytest.fixture(scope="session")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    return compile_contract(Path(__file__).parent, tmp_path_factory.mktemp("shop"), "shop.proto")


@pytest.fixture(scope="session")
def codecs() -> Codecs:
    return Codecs()


Decode = Callable[..., tuple[Any, Decoding]]


@pytest.fixture
def decode(shop: Contract, codecs: Codecs) -> Decode:
    def decode_(name: str, data: Any, **options: Any) -> tuple[Any, Decoding]:
        message, decoding = shop.new(name), Decoding(**options)
        codecs.of(shop.message(name)).decode(message, data, ("body",), decoding)
        return message, decoding

    return decode_


@pytest.fixture
def encode(shop: Contract, codecs: Codecs) -> Callable[[Any], dict[str, Any]]:
    return lambda message: codecs.of(message.DESCRIPTOR).encode(message)
