"""PostgreSQL, NATS and the S3 store by TLS, as URLs and settings ask for it, held to an authority of one's own."""

import asyncio
import contextlib
import http.server
import secrets
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from atelier_cli.embedded.nats import NatsServer
from atelier_cli.embedded.postgres import PostgresServer
from atelier_cli.embedded.process import Launch, RunningServer, free_ports
from meshkit import db as meshdb
from meshkit.bus import Bus
from meshkit.config import MeshSettings
from meshkit.db import Database
from meshkit.errors import MeshError
from meshkit.objects import ObjectStore
from tests.certificates import Authority

_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


class TlsFront:
    """Ends TLS before a PostgreSQL that has none, as its protocol begins it, and takes nothing in plain text."""

    def __init__(self, port: int, certificate: tuple[Path, Path]) -> None:
        self._behind = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self.connections = 0
        self.plain = 0

    async def serve(self) -> asyncio.Server:
        return await asyncio.start_server(self._take, "127.0.0.1", 0)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(8) != _SSL_REQUEST:
            self.plain += 1
            writer.close()
            return
        writer.write(b"S")
        await writer.drain()
        try:
            await writer.start_tls(self._context)
        except (ssl.SSLError, ConnectionError):
            writer.close()
            return
        self.connections += 1
        inner, outer = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(_pipe(reader, outer), _pipe(inner, writer))


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError, ssl.SSLError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


class CertifiedNats(NatsServer):
    """NATS that takes clients by TLS alone."""

    def __init__(self, folder: Path, certificate: Path, key: Path) -> None:
        super().__init__(folder, free_ports(1)[0], secrets.token_urlsafe(12), folder.with_suffix(".log"))
        self._files = (certificate, key)

    def prepare(self) -> Launch:
        launch = super().prepare()
        with (self.folder / "nats.conf").open("a", encoding="utf-8") as config:
            config.write(f'tls {{cert_file: "{self._files[0]}", key_file: "{self._files[1]}"}}\n')
        return launch


class Bucket(http.server.BaseHTTPRequestHandler):
    """A store that has every bucket."""

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.end_headers()

    do_GET = do_HEAD  # noqa: N815 -- the library's name

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def place(servers_folder: Path) -> Path:
    """A folder that a server of another user may read."""
    folder = servers_folder / "certified"
    folder.mkdir(mode=0o711)
    return folder


@pytest.fixture(scope="module")
def authority(place: Path) -> Authority:
    return Authority(place, "operators")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> tuple[Path, Path]:
    made, key = authority.issue("server", dns=["localhost"])
    made.chmod(0o644)
    return made, key


@pytest.fixture
def trusting(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process whose authorities are those that SSL_CERT_FILE names."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))


@pytest.fixture
async def front(postgres_server: PostgresServer, certificate: tuple[Path, Path]) -> AsyncIterator[tuple[TlsFront, int]]:
    front = TlsFront(postgres_server.port, certificate)
    server = await front.serve()
    yield front, server.sockets[0].getsockname()[1]
    server.close()


@pytest.fixture(scope="module")
def nats(place: Path, certificate: tuple[Path, Path]) -> Iterator[CertifiedNats]:
    running = RunningServer(server := CertifiedNats(place / "nats", *certificate))
    running.start()
    yield server
    running.stop()


@pytest.fixture(scope="module")
def bucket(certificate: tuple[Path, Path]) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def certified(dsn: str, port: int, authority: Authority) -> str:
    """Return the address of a database behind the front."""
    parts = urlsplit(dsn)
    place = f"{parts.netloc.rpartition(':')[0]}:{port}"
    return parts._replace(netloc=place, query=f"sslmode=verify-full&sslrootcert={authority.file}").geturl()


async def test_every_connection_to_postgresql_is_held_to_the_authority_that_its_url_names(
    fresh_postgres_dsn: str, front: tuple[TlsFront, int], authority: Authority
) -> None:
    url = certified(fresh_postgres_dsn, front[1], authority)
    await meshdb.migrate(url, "monitoring", "services.monitoring.migrations")
    database = Database(url, schema="monitoring", max_size=3)
    await database.open()
    try:
        await database.ping()
        async with database.transaction() as connection:
            await connection.execute("SELECT count(*) FROM loops")
    finally:
        await database.close()
    assert front[0].connections >= 2
    assert front[0].plain == 0


async def test_a_postgresql_of_another_authority_is_refused(
    fresh_postgres_dsn: str, front: tuple[TlsFront, int], tmp_path: Path
) -> None:
    url = certified(fresh_postgres_dsn, front[1], Authority(tmp_path, "strange"))
    database = Database(url, schema="monitoring")
    try:
        with pytest.raises(meshdb.DatabaseUnavailableError):
            await database.open(2)
    finally:
        await database.close()
    assert (front[0].connections, front[0].plain) == (0, 0)


@pytest.mark.usefixtures("trusting")
async def test_nats_is_held_to_the_authorities_of_the_process(nats: CertifiedNats) -> None:
    bus = Bus(nats.url.replace("nats://", "tls://"))
    await bus.connect(60)
    try:
        await bus.ping()
    finally:
        await bus.close()


async def test_a_nats_of_another_authority_is_refused(nats: CertifiedNats) -> None:
    bus = Bus(nats.url.replace("nats://", "tls://"))
    await bus.connect(1)
    try:
        with pytest.raises(MeshError, match="not reachable"):
            await bus.ping()
    finally:
        await bus.close()


def store(endpoint: str) -> ObjectStore:
    return ObjectStore.from_settings(
        MeshSettings(auth_secret="s" * 32, s3_endpoint=endpoint, s3_access_key="a", s3_secret_key="b", s3_secure=True)
    )


@pytest.mark.usefixtures("trusting")
async def test_the_store_is_held_to_the_authorities_of_the_process(bucket: str) -> None:
    objects = store(bucket)
    try:
        await objects.ping()
    finally:
        await objects.close()


async def test_a_store_of_another_authority_is_refused(bucket: str) -> None:
    objects = store(bucket)
    try:
        with pytest.raises(MeshError, match="not reachable"):
            await objects.ping()
    finally:
        await objects.close()
