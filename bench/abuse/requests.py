"""Rows that send requests: too large, too many, too slow, or without a token."""

from __future__ import annotations

import base64
import contextlib
import json
import select
import socket
import time

import grpc
import httpx
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from bench.abuse.bombs import animated_webp, riff, webp_image
from bench.abuse.rows import Abuse, row


@row("4 configs of 20 MB, 4 of 300,000 keys")
def large_configs(abuse: Abuse) -> None:
    """Send free-form members that no message carries."""
    long_text = '{"task_type":"NOOP","origin_instance":"bench","config":{"a":"' + "x" * 20_000_000 + '"}}'
    many = json.dumps({"task_type": "NOOP", "origin_instance": "bench", "config": {f"k{i}": 1 for i in range(300_000)}})
    abuse.together(4, lambda _: abuse.post(long_text), at_once=2)
    abuse.together(4, lambda _: abuse.post(many), at_once=2)


@row("8 creates with a WebP of 8000x8000")
def static_bombs(abuse: Abuse) -> None:
    """Send pictures that are small as files and large as pixels."""
    picture = base64.b64encode(riff(webp_image())).decode()
    abuse.together(8, lambda _: abuse.create(_generation(reference_image_data=picture)))


@row("4 creates with an animated WebP, 4 x 64 MP")
def animated_bombs(abuse: Abuse) -> None:
    """Send animations whose every frame is a large picture."""
    picture = base64.b64encode(animated_webp(webp_image(), frames=4)).decode()
    abuse.together(4, lambda _: abuse.create(_generation(reference_image_data=picture)))


@row("8 uploads with a WebP of 8000x8000")
def stored_bombs(abuse: Abuse) -> None:
    """Store the same pictures, which the gateway checks."""
    picture = riff(webp_image())
    headers = {"Authorization": abuse.headers["Authorization"]}

    def upload(number: int) -> None:
        files = {"file": ("a.webp", picture, "image/webp")}
        path = f"{abuse.url}/api/v1/storage/images/bomb-{number}.webp"
        abuse.note(lambda: httpx.post(path, files=files, headers=headers, timeout=60))

    abuse.together(8, upload)


@row("a head that never ends, no token")
def endless_head(abuse: Abuse) -> None:
    """Send headers until the gateway answers or closes, 128 MB at most."""
    with socket.create_connection(abuse.address, timeout=15) as connection:
        sent = 0
        try:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n")
            while sent < 128_000_000 and not select.select([connection], [], [], 0)[0]:
                connection.sendall((b"X-Filler: " + b"a" * 8_000 + b"\r\n") * 8)
                sent += 64_000
        except OSError:
            abuse.answers[f"closed after {sent // 1000} kB"] += 1
        else:
            abuse.answers["128 MB taken in" if sent >= 128_000_000 else _status(connection)] += 1


@row("1,100 idle connections, no token")
def idle_connections(abuse: Abuse) -> None:
    """Connect and say nothing for five seconds."""
    with contextlib.ExitStack() as stack:
        for _ in range(1_100):
            try:
                stack.enter_context(socket.create_connection(abuse.address, timeout=2))
                abuse.answers["connected"] += 1
            except OSError:
                abuse.answers["refused"] += 1
        time.sleep(5)


@row("12 x 60 MB to gRPC, no token")
def large_messages(abuse: Abuse) -> None:
    """Send large messages to a service that has not seen a token."""
    message = b"\0" * 60_000_000

    def send(_: int) -> None:
        options = [("grpc.max_send_message_length", -1)]
        with grpc.insecure_channel(abuse.grpc, options=options) as channel:
            call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
                "/atelier.tasks.v1.TasksService/CreateTask"
            )
            try:
                call(message, timeout=30)
            except grpc.RpcError as error:
                abuse.answers[error.code().name] += 1

    abuse.together(12, send, at_once=4)


@row("200 questions to reflection, no token")
def reflection(abuse: Abuse) -> None:
    """Ask for the list of services and for their contracts."""

    def ask(_: int) -> None:
        with grpc.insecure_channel(abuse.grpc) as channel:
            stub = reflection_pb2_grpc.ServerReflectionStub(channel)
            questions = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol="atelier.tasks.v1.TasksService"),
            ]
            try:
                for _answer in stub.ServerReflectionInfo(iter(questions), timeout=30):
                    abuse.answers["told"] += 1
            except grpc.RpcError as error:
                abuse.answers[error.code().name] += 1

    abuse.together(200, ask)
    if abuse.answers["told"]:
        abuse.wrong.append("contracts are told to strangers")


@row("1,100 watches of one tenant", probe="stream")
def watches(abuse: Abuse) -> None:
    """Follow one waiting task 1,100 times."""
    ident = abuse.create(_generation())
    token = abuse.headers["Authorization"]
    request = f"GET /api/v1/tasks/{ident}/events HTTP/1.1\r\nHost: localhost\r\nAuthorization: {token}\r\n\r\n".encode()
    with contextlib.ExitStack() as stack:
        opened: list[socket.socket] = []
        for _ in range(1_100):
            with contextlib.suppress(OSError):
                one = stack.enter_context(socket.create_connection(abuse.address, timeout=5))
                one.sendall(request)
                opened.append(one)
        for one in opened:
            one.settimeout(5)
            try:
                abuse.answers[_status(one)] += 1
            except OSError:
                abuse.answers["no answer"] += 1


@row("12 tasks whose picture trickles")
def trickling_inputs(abuse: Abuse) -> None:
    """Name pictures that come a byte a second, and wait eight seconds."""
    picture = f"http://127.0.0.1:{abuse.peers.trickling}/a.png"
    body = {"task_type": "IMAGE_ADJUSTER", "input_image": picture, "aspect_ratio": 1.0}
    abuse.together(12, lambda _: abuse.create(body))
    time.sleep(8)


@row("640 tasks with webhooks to 80 hanging ports", probe="webhook")
def hanging_receivers(abuse: Abuse) -> None:
    """Have webhooks sent to receivers that never answer, and wait eight seconds."""
    hooks = [f"http://127.0.0.1:{port}/" for port in abuse.peers.hanging]
    abuse.together(640, lambda i: abuse.create({"task_type": "NOOP", "webhook_url": hooks[i % len(hooks)]}))
    time.sleep(8)


def _status(connection: socket.socket) -> str:
    """Return the status that comes over a connection."""
    return connection.recv(64)[9:12].decode("latin-1") or "closed"


def _generation(**fields: object) -> dict[str, object]:
    return {"task_type": "GENERATION", "prompt": "a red dress", **fields}
