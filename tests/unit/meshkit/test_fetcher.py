import asyncio
import gzip
import ipaddress
import socket
from contextlib import asynccontextmanager
from typing import Any

import pytest

from meshkit.errors import ErrorKind, MeshError
from meshkit.fetcher import Fetcher, PostReply, check_url, is_public

PUBLIC = ["8.8.8.8", "1.1.1.1", "93.184.215.14", "2606:4700:4700::1111", "2a00:1450:4001:81b::200e", "::ffff:8.8.8.8",
          "64:ff9b::808:808"]  # fmt: skip
INNER = [
    "127.0.0.1", "127.255.255.254", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1",
    "198.51.100.7", "203.0.113.9", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255", "192.88.99.1",
    "::", "::1", "fe80::1", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "2001:db8::1", "100::1", "::127.0.0.1",
    "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a00:1", "2002:7f00:1::", "2002:a9fe:a9fe::", "2001:0:7f00:1::", "2002:808:808::1", "3fff::1",
    "5f00::1",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses(address: Any) -> None:
    assert is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", INNER)
def test_addresses_that_lead_inside(address: Any) -> None:
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("ftp://example.com/a", "url_scheme"),
        ("file:///etc/passwd", "url_scheme"),
        ("gopher://example.com", "url_scheme"),
        ("//example.com/a", "url_scheme"),
        ("example.com", "url_scheme"),
        ("javascript:alert(1)", "url_scheme"),
        ("http://user:pw@example.com/", "url_credentials"),
        ("http://user@example.com/", "url_credentials"),
        ("http://@example.com/", "url_credentials"),
        ("http://", "url_parsing"),
        ("http:///path", "url_parsing"),
        ("http://example.com:0/", "url_parsing"),
        ("http://example.com:99999/", "url_parsing"),
        ("http://example.com:x/", "url_parsing"),
        ("http://example.com\\@127.0.0.1/", "url_parsing"),
        ("http://exa mple.com/", "url_parsing"),
        ("http://example.com/\r\nHost: x", "url_parsing"),
        ("http://example.com/\0", "url_parsing"),
        ("http://[::1", "url_parsing"),
        ("http://2130706433/", "url_parsing"),
        ("http://0x7f000001/", "url_parsing"),
        ("http://0x7f.1/", "url_parsing"),
        ("http://127.1/", "url_parsing"),
        ("http://0177.0.0.1/", "url_parsing"),
        ("http://127.0.0.1./", "url_parsing"),
        ("http://" + "a" * 5000, "url_too_long"),
    ],
)
def test_addresses_that_are_refused_unresolved(url: Any, kind: Any) -> None:
    with pytest.raises(MeshError) as caught:
        check_url(url)
    assert (caught.value.kind, caught.value.violations[0].type) == (ErrorKind.INVALID, kind)


def test_parts_of_an_address() -> None:
    assert check_url("https://Example.COM/a?b=c").host == "example.com"
    assert check_url("https://example.com").port == 443
    assert check_url("http://example.com:8080/").port == 8080
    assert check_url("http://[2606:4700::1]/").host == "2606:4700::1"
    assert check_url("http://bücher.example/").host == "xn--bcher-kva.example"


def resolving(**names: Any) -> Any:
    async def resolve(host: Any, _port: Any) -> Any:
        return names.get(host.replace(".", "_"), [])

    return resolve


async def reason(fetcher: Any, url: Any, max_bytes: Any = 1000, seconds: Any = 5, **options: Any) -> Any:
    with pytest.raises(MeshError) as caught:
        await fetcher.fetch(url, max_bytes, seconds, **options)
    error = caught.value
    return error.violations[0].type if error.violations else error.reason


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/",
        "http://169.254.169.254/latest/meta-data",
        "http://[::1]/",
        "http://[::ffff:10.0.0.1]/",
        "http://[fe80::1%25eth0]/",
        "http://localhost:8080/",
        "http://a.localhost/",
        "http://LOCALHOST./",
        "http://metadata.google.internal/",
    ],
)
def test_what_is_plainly_inside_is_refused_unresolved(url: str) -> None:
    with pytest.raises(MeshError) as caught:
        Fetcher().check(url, path="task.webhook_url")
    assert [(v.path, v.type) for v in caught.value.violations] == [("task.webhook_url", "url_private")]


def test_what_is_allowed_or_only_a_name_passes_unresolved() -> None:
    fetcher = Fetcher(["127.0.0.1:8000", "10.0.0.0/8", "minio.internal:9000"])
    for url in ("http://127.0.0.1:8000/", "http://10.1.2.3/", "http://minio.internal:9000/a", "https://example.com/"):
        assert fetcher.check(url).url == url
    with pytest.raises(MeshError):
        fetcher.check("http://127.0.0.1:8001/")


async def test_a_name_that_leads_inside_is_refused() -> None:
    fetcher = Fetcher(resolver=resolving(evil_example=["10.0.0.5"], mixed_example=["8.8.8.8", "127.0.0.1"]))
    assert await reason(fetcher, "http://evil.example/") == "url_private"
    assert await reason(fetcher, "http://mixed.example/") == "url_private", "one bad address spoils the name"
    assert await reason(fetcher, "http://absent.example/") == "url_host"


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (socket.EAI_NONAME, (ErrorKind.INVALID, "url_host")),
        (socket.EAI_NODATA, (ErrorKind.INVALID, "url_host")),
        (socket.EAI_AGAIN, (ErrorKind.UNAVAILABLE, "DNS_FAILED")),
        (socket.EAI_FAIL, (ErrorKind.UNAVAILABLE, "DNS_FAILED")),
        (socket.EAI_SYSTEM, (ErrorKind.UNAVAILABLE, "DNS_FAILED")),
        (socket.EAI_MEMORY, (ErrorKind.UNAVAILABLE, "DNS_FAILED")),
    ],
)
async def test_only_a_name_that_does_not_exist_is_the_callers_mistake(
    monkeypatch: pytest.MonkeyPatch, code: int, expected: tuple[ErrorKind, str]
) -> None:
    def answer(*_args: Any, **_more: Any) -> Any:
        raise socket.gaierror(code, "as the system's resolver says it")

    monkeypatch.setattr(socket, "getaddrinfo", answer)
    for work in (Fetcher().fetch("http://pictures.example/", 1000, 5), Fetcher().post("http://x.example/", b"", {}, 5)):
        with pytest.raises(MeshError) as caught:
            await work
        error = caught.value
        assert (error.kind, error.violations[0].type if error.violations else error.reason) == expected


async def test_a_name_with_a_part_that_is_too_long_does_not_exist() -> None:
    assert await reason(Fetcher(), f"http://{'a' * 64}.example/") == "url_host"


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "localhost", "0.0.0.0"]
)
async def test_inner_addresses_are_refused_by_the_systems_resolver_too(host: Any) -> None:
    assert await reason(Fetcher(), f"http://{host}:9/") == "url_private"


@asynccontextmanager
async def serving(respond: Any) -> Any:
    """A tiny HTTP server: `respond(path)` gives the raw answer."""
    seen = []
    running: set[asyncio.Future[None]] = set()

    async def handle(reader: Any, writer: Any) -> None:
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        running.add(ended)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split(" ", 2)[1]
        seen.append(head)
        try:
            answer = respond(path)
            if asyncio.iscoroutine(answer):
                answer = await answer
            writer.write(answer)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
        except ConnectionError:
            pass
        finally:
            writer.close()
            ended.set_result(None)

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], seen
    finally:
        server.close()
        if running:
            await asyncio.wait(running, timeout=5)


def answer(body: Any = b"hello", status: Any = "200 OK", **headers: Any) -> Any:
    lines = [f"HTTP/1.1 {status}", "Connection: close", *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def test_the_judged_address_is_the_one_connected_to_and_the_name_stays() -> None:
    calls = []

    async def rebinding(host: Any, _port: Any) -> Any:
        calls.append(host)
        return ["127.0.0.1"] if len(calls) == 1 else ["127.0.0.2"]

    async with serving(lambda _path: answer(Content_Type="Image/PNG; q=1")) as (port, seen):
        fetcher = Fetcher([f"pictures.example:{port}"], resolver=rebinding)
        fetched = await fetcher.fetch_full(f"http://pictures.example:{port}/a?b=c", 1000, 5)
    assert (fetched.data, fetched.content_type) == (b"hello", "image/png")
    assert calls == ["pictures.example"], "resolved once, connected by address"
    assert seen[0].startswith("GET /a?b=c HTTP/1.1")
    assert f"host: pictures.example:{port}" in seen[0].lower()


async def test_redirects_are_followed_and_judged_again() -> Any:
    def respond(path: Any) -> Any:
        target = {"/good": "/end", "/bad": "http://10.0.0.1/", "/file": "file:///etc/passwd", "/loop": "/loop"}.get(
            path
        )
        return answer(status="302 Found", Location=target) if target else answer(b"end")

    async with serving(respond) as (port, seen):
        fetcher = Fetcher([f"127.0.0.1:{port}"])
        base = f"http://127.0.0.1:{port}"
        assert await fetcher.fetch(f"{base}/good", 1000, 5) == b"end"
        assert await reason(fetcher, f"{base}/bad") == "url_private"
        assert await reason(fetcher, f"{base}/file") == "url_scheme"
        seen.clear()
        assert await reason(fetcher, f"{base}/loop") == "url_redirects"
        assert len(seen) == 4


async def test_a_private_network_may_be_allowed() -> None:
    async with serving(lambda _path: answer()) as (port, _):
        assert await Fetcher(["127.0.0.0/8"]).fetch(f"http://127.0.0.1:{port}/", 1000, 5) == b"hello"
        assert await reason(Fetcher([f"127.0.0.1:{port + 1}"]), f"http://127.0.0.1:{port}/") == "url_private"


async def test_sizes_are_limited_declared_streamed_and_compressed() -> None:
    bomb = gzip.compress(b"\0" * 10_000_000)
    bodies = {
        "/declared": answer(b"", Content_Length="1001"),
        "/streamed": answer(b"x" * 1001),
        "/bomb": answer(bomb, Content_Encoding="gzip", Content_Length=str(len(bomb))),
        "/exact": answer(b"x" * 1000),
    }
    async with serving(bodies.__getitem__) as (port, _):
        fetcher = Fetcher([f"127.0.0.1:{port}"])
        for path in ("/declared", "/streamed"):
            assert await reason(fetcher, f"http://127.0.0.1:{port}{path}") == "TOO_LARGE"
        assert await reason(fetcher, f"http://127.0.0.1:{port}/bomb", 20_000) == "TOO_LARGE"
        assert len(await fetcher.fetch(f"http://127.0.0.1:{port}/exact", 1000, 5)) == 1000


async def test_body_that_is_compressed_twice_is_not_unpacked() -> None:
    bomb = gzip.compress(gzip.compress(b"\0" * 10_000_000))
    async with serving(lambda _path: answer(bomb, Content_Encoding="gzip, gzip")) as (port, _):
        fetcher = Fetcher([f"127.0.0.1:{port}"])
        assert await reason(fetcher, f"http://127.0.0.1:{port}/", 20_000_000) == "url_content_encoding"


async def test_media_types_are_held_to_where_asked_for() -> None:
    async with serving(lambda _path: answer(Content_Type="text/html")) as (port, _):
        fetcher = Fetcher([f"127.0.0.1:{port}"])
        url = f"http://127.0.0.1:{port}/"
        assert await reason(fetcher, url, content_types=("image/",)) == "url_content_type"
        assert await fetcher.fetch(url, 1000, 5, content_types=("image/", "text/")) == b"hello"


@pytest.mark.parametrize("content_type", ["application/octet-stream", "binary/octet-stream; x=1", "", None])
async def test_content_without_a_telling_type_is_left_to_its_reader(content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content_Type": content_type}
    async with serving(lambda _path: answer(**headers)) as (port, _):
        fetcher = Fetcher([f"127.0.0.1:{port}"])
        assert await fetcher.fetch(f"http://127.0.0.1:{port}/", 1000, 5, content_types=("image/",)) == b"hello"


async def test_a_refused_private_address_names_the_setting_that_allows_it() -> None:
    with pytest.raises(MeshError) as caught:
        Fetcher().check("http://127.0.0.1:8080/hook", path="webhook_url")
    assert "ATELIER_FETCH_ALLOW_PRIVATE" in caught.value.violations[0].message


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        ("404 Not Found", "url_status"),
        ("401 No", "url_status"),
        ("500 Oops", "FETCH_FAILED"),
        ("429 Slow", "FETCH_FAILED"),
    ],
)
async def test_other_answers_are_errors(status: Any, kind: Any) -> None:
    async with serving(lambda _path: answer(status=status)) as (port, _):
        assert await reason(Fetcher([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/") == kind


async def test_a_slow_server_is_given_up() -> Any:
    gate = asyncio.Event()

    async def hang(_path: Any) -> Any:
        await gate.wait()
        return answer()

    async with serving(hang) as (port, _):
        assert await reason(Fetcher([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/", seconds=0.2) == "FETCH_TIMEOUT"
        gate.set()


async def test_nobody_there_is_unavailable() -> None:
    async with serving(lambda _path: answer()) as (port, _):
        pass
    assert await reason(Fetcher([f"127.0.0.1:{port}"]), f"http://127.0.0.1:{port}/") == "FETCH_FAILED"


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    async with serving(lambda _path: answer()) as (port, _):
        assert await Fetcher([f"127.0.0.1:{port}"]).fetch(f"http://127.0.0.1:{port}/", 1000, 5) == b"hello"


async def test_a_post_goes_to_the_judged_address_and_only_its_status_is_read() -> None:
    async def resolve(_host: Any, _port: Any) -> Any:
        return ["127.0.0.1"]

    async with serving(lambda _path: answer(b"x", "202 Accepted", Content_Length="100000")) as (port, seen):
        fetcher = Fetcher([f"hooks.example:{port}"], resolver=resolve)
        url = f"http://hooks.example:{port}/hook"
        assert await fetcher.post(url, b"{}", {"webhook-id": "1", "user-agent": "other"}, 5) == PostReply(202)
    assert seen[0].startswith("POST /hook HTTP/1.1")
    assert f"host: hooks.example:{port}" in seen[0].lower()
    assert "webhook-id: 1" in seen[0].lower()
    assert "user-agent: atelier" in seen[0].lower()


async def test_a_post_follows_no_redirect_and_reaches_nothing_private() -> None:
    async with serving(lambda _path: answer(status="307 Elsewhere", Location="/other")) as (port, seen):
        url = f"http://127.0.0.1:{port}/"
        assert await Fetcher([f"127.0.0.1:{port}"]).post(url, b"{}", {}, 5) == PostReply(307)
        assert len(seen) == 1
        with pytest.raises(MeshError) as caught:
            await Fetcher().post(url, b"{}", {}, 5, path="webhook_url")
        assert [(v.path, v.type) for v in caught.value.violations] == [("webhook_url", "url_private")]
        assert len(seen) == 1


async def test_a_post_tells_when_the_other_side_wants_to_be_asked_again() -> None:
    async with serving(lambda _path: answer(status="429 Slow", Retry_After="120")) as (port, _):
        reply = await Fetcher([f"127.0.0.1:{port}"]).post(f"http://127.0.0.1:{port}/", b"{}", {}, 5)
    assert reply == PostReply(429, "120")


async def test_a_post_that_is_not_answered_is_given_up() -> None:
    async def late(_path: Any) -> bytes:
        await asyncio.sleep(0.5)
        return b""

    async with serving(late) as (port, _):
        fetcher = Fetcher(["127.0.0.1/32"])
        with pytest.raises(MeshError) as caught:
            await fetcher.post(f"http://127.0.0.1:{port}/", b"{}", {}, 0.1)
        assert caught.value.reason == "FETCH_TIMEOUT"
    with pytest.raises(MeshError) as caught:
        await fetcher.post(f"http://127.0.0.1:{port}/", b"{}", {}, 5)
    assert caught.value.reason == "FETCH_FAILED"
