"""A new service costs its folder, its contracts, and one entry in the table of services.

`echo_service` is such a service: nothing in the mesh names it. It is started as `atelier up` would start it, and spoken
to by gRPC and through the gateway.
"""

import asyncio
import importlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from pydantic import SecretStr

from atelier_cli.embedded.process import RunningServer, free_ports
from atelier_cli.folder import DataFolder
from atelier_cli.mesh import MeshPlan, ServiceProcess, choose_ports, plan
from meshkit import topology
from meshkit.auth import TokenIssuer
from meshkit.channel import MeshChannel
from meshkit.errors import ErrorKind, MeshError
from services.gateway import composition as gateway
from services.gateway.config import GatewaySettings
from services.gateway.contracts import read_image

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
# The compiled contract of the service, made once: a process keeps the descriptors that it has loaded.
IMAGE = "echo.binpb"
SOURCES = {".py", ".proto"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the service's generated code, on the path of this process and of those that it starts."""
    out = tmp_path_factory.mktemp("gen")
    proto = HERE / "proto"
    protoc = [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        f"-I{proto}",
        f"-I{ROOT / 'proto'}",
        f"-I{ROOT / 'third_party'}",
    ]
    made = [f"--python_out={out}", f"--grpc_python_out={out}"]
    image = [f"--descriptor_set_out={out / IMAGE}", "--include_imports", "--include_source_info"]
    subprocess.run([*protoc, *made, *image, "echo/v1/echo_service.proto"], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(HERE)
        patch.syspath_prepend(out)
        patch.setenv("PYTHONPATH", os.pathsep.join([str(out), str(HERE), str(ROOT), str(ROOT / "gen")]))
        echo = importlib.import_module("echo_service").ECHO
        patch.setattr(topology, "SERVICES", (*topology.SERVICES, echo))
        yield out


@pytest.fixture(scope="module")
def mesh(compiled: Path, tmp_path_factory: pytest.TempPathFactory) -> MeshPlan:
    """A mesh as `atelier up` lays it out."""
    assert compiled.exists()
    folder = DataFolder(tmp_path_factory.mktemp("mesh") / "data")
    folder.make()
    return plan(folder, folder.credentials(), *choose_ports(free_ports(1)[0], None))


@pytest.fixture(scope="module")
def process(mesh: MeshPlan) -> Iterator[ServiceProcess]:
    """The service as a process."""
    planned = mesh.servers["echo"]
    assert isinstance(planned, ServiceProcess)
    running = RunningServer(planned)
    running.start()
    yield planned
    running.stop()


@pytest.fixture
def secret(process: ServiceProcess) -> str:
    return process.environment["ATELIER_AUTH_SECRET"]


@pytest.fixture
async def call(process: ServiceProcess, secret: str) -> AsyncIterator[Any]:
    """Calls the service with a token of the scopes that are named; none without any."""
    messages = importlib.import_module("echo.v1.echo_service_pb2")
    stubs = importlib.import_module("echo.v1.echo_service_pb2_grpc")
    async with AsyncExitStack() as stack:

        async def call_(*scopes: str, **members: Any) -> Any:
            token = TokenIssuer(secret).issue("ada", "acme", scopes, 60) if scopes else None
            channel = MeshChannel(process.environment["ATELIER_LISTEN"], (lambda: token) if token else None)
            stack.push_async_callback(channel.close)
            return await channel.stub(stubs.EchoServiceStub).Echo(messages.EchoRequest(**members))

        yield call_


async def refused(call: Any) -> MeshError:
    with pytest.raises(MeshError) as caught:
        await call
    return caught.value


def test_nothing_outside_of_its_folder_and_contracts_names_it() -> None:
    folders = (ROOT / name for name in ("meshkit", "services", "atelier_cli", "proto"))
    files = (path for folder in folders for path in folder.rglob("*.*") if path.suffix in SOURCES)
    texts = (path.read_text(encoding="utf-8") for path in files)
    assert not any("echo_service" in text or "echo.v1" in text for text in texts)


def test_it_is_given_what_its_entry_says_and_no_more(process: ServiceProcess, mesh: MeshPlan) -> None:
    joining = {name for name in process.environment if name in topology.joining_settings()}
    assert joining == {"ATELIER_AUTH_SECRET"}
    assert process.environment["ATELIER_LISTEN"] == f"127.0.0.1:{mesh.ports['echo']}"
    assert mesh.pages["echo"].endswith("/metrics")
    in_gateway = mesh.servers["gateway"]
    assert isinstance(in_gateway, ServiceProcess)
    assert in_gateway.environment["ATELIER_ECHO_ADDRESS"] == process.environment["ATELIER_LISTEN"]


def test_it_answers_health_checks(process: ServiceProcess) -> None:
    assert process.ready()


async def test_it_applies_the_rules_of_its_contract(call: Any) -> None:
    answer = await call("write", text="la")
    assert (answer.text, answer.tenant) == ("lala", "acme"), "the default of `times` applies"
    assert (await call("write", text="la", times=3)).text == "lalala"
    error = await refused(call("write", text="far too long"))
    assert (error.kind, [(one.path, one.type) for one in error.violations]) == (
        ErrorKind.INVALID,
        [("text", "string_too_long")],
    )
    assert (await refused(call("write", text="la", times=9))).violations[0].path == "times"


async def test_it_asks_for_a_token_and_its_scope(call: Any) -> None:
    assert (await refused(call(text="la"))).kind is ErrorKind.UNAUTHENTICATED
    error = await refused(call("read", text="la"))
    assert (error.kind, error.metadata["scope"]) == (ErrorKind.FORBIDDEN, "write")


async def test_it_counts_its_calls(call: Any, mesh: MeshPlan) -> None:
    await call("write", text="la")
    async with httpx.AsyncClient() as client:
        page = (await client.get(mesh.pages["echo"])).text
    assert 'rpc_server_seconds_count{code="OK",method="EchoService/Echo"}' in page


async def test_the_gateway_serves_its_routes_and_asks_for_its_health(
    process: ServiceProcess, secret: str, compiled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # `make proto` puts the contracts of all services into one image.
    image = read_image()
    known = {file.name for file in image.file}
    own = FileDescriptorSet.FromString((compiled / IMAGE).read_bytes())
    image.file.extend(file for file in own.file if file.name not in known)
    monkeypatch.setattr(gateway, "read_image", lambda: image)
    monkeypatch.setenv("ATELIER_ECHO_ADDRESS", process.environment["ATELIER_LISTEN"])
    settings = GatewaySettings(auth_secret=SecretStr(secret))
    token = TokenIssuer(secret).issue("ada", "acme", ["write"], 60)
    async with AsyncExitStack() as stack:
        app = gateway.build_app(settings, stack, asyncio.Event())
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app),
                base_url="http://gateway",
                headers={"authorization": f"Bearer {token}"},
            )
        )
        answer = await client.post("/api/v1/echo", json={"text": "la"})
        assert (answer.status_code, answer.json()) == (200, {"text": "lala", "tenant": "acme"})
        bad = await client.post("/api/v1/echo", json={"text": ""})
        assert (bad.status_code, bad.json()["detail"][0]["loc"]) == (422, ["body", "text"])
        async with asyncio.timeout(60):  # it is asked in bounded time, which a busy machine may exceed
            while (await client.get("/health")).json()["services"]["echo"] != "healthy":
                pass
        assert "/api/v1/echo" in (await client.get("/openapi.json")).json()["paths"]
