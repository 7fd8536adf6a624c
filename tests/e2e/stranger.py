"""A program: another user of the machine, without a credential, tries the doors of a mesh.

Reads what to try as JSON from standard input, gives up root's rights where it has them, tries every port by HTTP, TLS
and gRPC as one who knows the servers behind them would, and writes as JSON what each attempt got.
"""

import contextlib
import encodings.idna  # noqa: F401 -- a lookup of an address loads it, and then root's Python may be out of reach
import http.client
import json
import os
import pwd
import socket
import ssl
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import psycopg

from atelier_cli.embedded.mutual_tls import Identity

_SECONDS = 5


def main() -> None:
    task = json.load(sys.stdin)
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.setgroups([])
        os.setgid(nobody.pw_gid)
        os.setuid(nobody.pw_uid)
    with tempfile.TemporaryDirectory() as folder:
        identity = Identity.draw(Path(folder))
        found = [each for port in task["ports"] for each in _port(port, task["object"], task["calls"], identity)]
    found += [{"door": path, "attempt": "connect", "got": _connect(path)} for path in task["sockets"]]
    found.append({"door": "postgres", "attempt": "connect", "got": _postgres(task["postgres"])})
    found.append({"door": "nats", "attempt": "connect", "got": _nats(task["nats"])})
    json.dump(found, sys.stdout)


def _port(port: int, name: str, calls: list[list[str]], identity: Identity) -> Iterator[dict[str, Any]]:
    for method, path in _requests(name):
        yield {"door": port, "attempt": f"{method} {path}", "got": _http(port, method, path)}
    for shown in (None, identity):
        yield {"door": port, "attempt": f"TLS {shown and 'with a strange certificate'}", "got": _tls(port, shown)}
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        for method, request in [*calls, *_store_calls(name)]:
            got = _grpc(channel, method, bytes.fromhex(request))
            yield {"door": port, "attempt": method, "got": got}
            if got is None:  # no gRPC here
                break


def _requests(name: str) -> list[tuple[str, str]]:
    """What SeaweedFS's parts, S3 and NATS's monitoring would serve."""
    bucket = name.partition("/")[0]
    reads = (
        *(f"/buckets/{name}", f"/buckets/{bucket}/", f"/{name}", f"/{bucket}?list-type=2", "/?pretty=y"),
        *("/dir/assign", "/dir/status", "/dir/lookup?volumeId=1", "/vol/status", "/cluster/status", "/status"),
        *("/ui/index.html", "/varz", "/connz"),
    )
    writes = (
        *(("PUT", f"/buckets/{bucket}/stranger"), ("PUT", f"/{bucket}/stranger"), ("PUT", f"/buckets/{name}")),
        *(("PUT", f"/{name}"), ("POST", "/submit"), ("DELETE", f"/buckets/{name}"), ("DELETE", f"/{name}")),
    )
    return [*(("GET", path) for path in reads), *writes]


def _store_calls(name: str) -> list[tuple[str, str]]:
    """Calls of SeaweedFS by gRPC; the first two fields of each request are texts, or it is empty."""
    folder, _, file = f"/buckets/{name}".rpartition("/")
    both = _text(1, folder) + _text(2, file)
    return [
        ("/filer_pb.SeaweedFiler/LookupDirectoryEntry", both.hex()),
        ("/filer_pb.SeaweedFiler/GetFilerConfiguration", ""),
        ("/filer_pb.SeaweedFiler/DeleteEntry", both.hex()),
        ("/master_pb.Seaweed/VolumeList", ""),
        ("/master_pb.Seaweed/Assign", ""),
        ("/volume_server_pb.VolumeServer/VolumeServerStatus", ""),
    ]


def _text(number: int, value: str) -> bytes:
    encoded = value.encode()
    return bytes([number << 3 | 2, len(encoded)]) + encoded


def _http(port: int, method: str, path: str) -> dict[str, Any] | None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    body = None if method in {"GET", "DELETE"} else b"overwritten"
    try:
        connection.request(method, path, body)
        answer = connection.getresponse()
        return {"status": answer.status, "text": answer.read(10_000).decode(errors="replace")}
    except (OSError, http.client.HTTPException):
        return None
    finally:
        connection.close()


def _tls(port: int, identity: Identity | None) -> str | None:
    """What a server says first to one who shows a certificate of his own, or none."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    if identity is not None:
        context.load_cert_chain(identity.certificate, identity.key)
    with (
        contextlib.suppress(OSError),
        socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as plain,
        context.wrap_socket(plain) as client,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return client.recv(200).decode(errors="replace") or None
    return None


def _grpc(channel: grpc.Channel, method: str, request: bytes) -> str | None:
    call: Callable[..., bytes] = channel.unary_unary(method)  # sends and takes bytes as they are
    try:
        call(request, timeout=_SECONDS)
    except grpc.RpcError as error:
        code = error.code()
        return None if code in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED} else str(code.name)
    return "OK"


def _connect(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        try:
            client.connect(path)
        except OSError as error:
            return type(error).__name__
    return "OK"


def _postgres(port: int) -> str:
    try:
        psycopg.connect(host="127.0.0.1", port=port, user="atelier", dbname="atelier", connect_timeout=_SECONDS).close()
    except psycopg.OperationalError as error:
        return str(error)
    return "OK"


def _nats(port: int) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=_SECONDS) as client:
        client.sendall(b'CONNECT {"verbose":true}\r\nPING\r\n')
        return "".join(line.decode() for line in client.makefile("rb"))


if __name__ == "__main__":
    main()
