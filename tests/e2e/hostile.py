"""A seeded grammar of hostile requests: bodies, heads, pictures, safetensors and gRPC messages.

Each request is drawn by the seed and its own number, so that one that fails can be sent again alone.
"""

import base64
import contextlib
import io
import json
import random
import socket
import struct
import tempfile
import time
import zlib
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from PIL import Image

from meshkit.errors import MeshError
from meshkit.worker.lora_cache import check_safetensors
from tests.e2e.harness import RunningMesh

SERVICES = ("gateway", "tasks", "workflows", "worker")
_THREADS = 4
_TRACEBACK = b"Traceback (most recent call last)"
_GRPC_METHODS = (
    ("tasks", "/atelier.tasks.v1.TasksService/CreateTask"),
    ("tasks", "/atelier.tasks.v1.TasksService/ListTasks"),
    ("tasks", "/atelier.tasks.v1.TasksService/GetTask"),
    ("tasks", "/atelier.mesh.v1.BundleService/Bundle"),
    ("tasks", "/atelier.tasks.v1.WorkerService/Lease"),
    ("tasks", "/atelier.tasks.v1.Nothing/Here"),
    ("workflows", "/atelier.workflows.v1.WorkflowsService/CreateWorkflow"),
)
# What a caller must never be told: the service did not know what it was doing.
_UNKNOWING = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.INTERNAL, grpc.StatusCode.DATA_LOSS}

Draw = random.Random


@dataclass
class Target:
    """Where requests go."""

    mesh: RunningMesh
    client: httpx.Client
    channels: dict[str, grpc.Channel]
    token: str
    answers: Counter[str] = field(default_factory=Counter)

    def judge(self, answer: httpx.Response) -> str | None:
        """Say what is wrong with an answer; None if nothing is."""
        self.answers[str(answer.status_code)] += 1
        if answer.status_code < 500:
            return None
        if answer.status_code in {503, 504} and "retry-after" in answer.headers:
            return None
        return f"{answer.status_code} {answer.text[:200]}"


def _text(draw: Draw) -> str:
    return draw.choice(
        [
            "",
            "a red dress",
            "\0",
            "\ud800",
            "a" * draw.choice([10, 5_000, 70_000]),
            "../../etc/passwd",
            "http://169.254.169.254/",
            "data:image/png;base64,AAAA",
            "%00%ff",
            "\u202e\U0001f984",
            "NaN",
            "1e999",
        ]
    )


def _value(draw: Draw, depth: int = 0) -> Any:
    kind = draw.randrange(11 if depth < 4 else 9)
    if kind == 9:
        return [_value(draw, depth + 1) for _ in range(draw.randrange(4))]
    if kind == 10:
        return {_text(draw)[:40]: _value(draw, depth + 1) for _ in range(draw.randrange(4))}
    return [
        None,
        draw.random() < 0.5,
        draw.choice([0, -1, 2**31, 2**53 + 1, -(2**63), 10**30]),
        draw.choice([0.5, -0.0, 1e308]),
        _text(draw),
        _text(draw),
        [],
        {},
        draw.choice(["GENERATION", "NOOP", "MAGIC", "2026-11-27T00:00:00Z"]),
    ][kind]


_MEMBERS = [
    "prompt",
    "width",
    "height",
    "seed",
    "steps",
    "step_ms",
    "payload",
    "config",
    "labels",
    "priority",
    "webhook_url",
    "reference_image_data",
    "reference_image_url",
    "style_model_path",
    "queue_name",
    "provider_type",
    "origin_tenant_id",
    "origin_reference",
    "origin_zone",
    "result_bytes",
    "max_retries",
    "not_before",
    "for_each",
    "name",
    "widht",
]


def _task(draw: Draw) -> dict[str, Any]:
    body: dict[str, Any] = {"task_type": draw.choice(["NOOP", "GENERATION"]), "origin_instance": "fuzz", "steps": 0}
    body |= {draw.choice(_MEMBERS): _value(draw) for _ in range(draw.randrange(5))}
    if draw.random() < 0.1:
        body[draw.choice(["task_type", "origin_instance"])] = _value(draw)
    return body


def _workflow(draw: Draw) -> dict[str, Any]:
    steps = [
        {
            "id": draw.choice(["a", "b", "c", _text(draw)[:20]]),
            "task_type": draw.choice(["NOOP", "MAGIC"]),
            "depends_on": draw.choice([[], ["a"], ["b"], _value(draw)]),
            "config": draw.choice([{}, {"steps": 0}, _value(draw)]),
            draw.choice(["when", "for_each", "input_mappings", "retry"]): _value(draw),
        }
        for _ in range(draw.randrange(4))
    ]
    return {"name": _text(draw)[:50], "origin_instance": "fuzz", "steps": draw.choice([steps, steps, _value(draw)])}


def _spoil(draw: Draw, data: bytes) -> bytes:
    """Cut, flip or swell some bytes."""
    spoiled = bytearray(data)
    for _ in range(draw.randrange(1, 6)):
        if not spoiled:
            break
        at = draw.randrange(len(spoiled))
        match draw.randrange(4):
            case 0:
                spoiled[at] = draw.randrange(256)
            case 1:
                del spoiled[at:]
            case 2:
                spoiled[at:at] = draw.randbytes(draw.choice([1, 7, 300]))
            case _:
                del spoiled[at : at + draw.randrange(1, 9)]
    return bytes(spoiled)


def send_body(draw: Draw, target: Target) -> str | None:
    """Send a hostile JSON body, sometimes one that is no JSON."""
    path, make = draw.choice([("/api/v1/tasks/", _task), ("/api/v1/workflows/", _workflow)])
    content = json.dumps(make(draw)).encode()
    if draw.random() < 0.3:
        content = _spoil(draw, content)
    if draw.random() < 0.02:
        content = b'{"config":' + b"[" * 100_000
    headers = {"content-type": draw.choice(["application/json", "application/json", "text/plain", "a/b; charset=x"])}
    method = draw.choice(["POST", "POST", "POST", "PUT", "PATCH"])
    return target.judge(target.client.request(method, path, content=content, headers=headers))


def send_query(draw: Draw, target: Target) -> str | None:
    """Read with hostile parameters and paths."""
    path = draw.choice(
        [
            "/api/v1/tasks/",
            "/api/v1/workflows/",
            "/api/v1/webhooks/deliveries",
            "/api/v1/tasks/%00",
            "/api/v1/tasks/" + "a" * 300,
            "/api/v1/storage/images/%ff%fe.png",
            "/api/v1/storage/images/" + "%2e%2e%2f" * 5,
        ]
    )
    names = ["limit", "skip", "status", "task_type", "search", "created_after", "include_deleted", "sort"]
    query = {draw.choice(names): draw.choice(["-1", "1e9", "", "x", "\0", "99999999999999999999"]) for _ in range(3)}
    return target.judge(target.client.get(path, params=query))


def _picture(draw: Draw) -> bytes:
    out = io.BytesIO()
    kind = draw.choice(["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
    size = (draw.choice([1, 8, 64]), draw.choice([1, 8, 64]))
    Image.new(draw.choice(["RGB", "L"]), size, draw.randrange(256)).save(out, kind)
    if draw.random() < 0.1:
        return _huge_png(draw)
    return _spoil(draw, out.getvalue()) if draw.random() < 0.9 else out.getvalue()


def _huge_png(draw: Draw) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    side = draw.choice([0, 7_000, 50_000, 2**31 - 1])
    header = struct.pack(
        ">IIBBBBB", side, draw.choice([1, side]), draw.choice([1, 8, 16]), draw.choice([0, 2, 6]), 0, 0, 0
    )
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 10_000))
        + chunk(b"IEND", b"")
    )


def send_picture(draw: Draw, target: Target) -> str | None:
    """Send a damaged picture, stored or inline."""
    picture = _picture(draw)
    if draw.random() < 0.5:
        name = draw.choice(["a.png", "a.jpg", "a.webp", "a.txt"])
        path = f"/api/v1/storage/images/fuzz/{name}"
        return target.judge(target.client.post(path, files={"file": (name, picture, "image/png")}))
    body = {"task_type": "GENERATION", "origin_instance": "fuzz", "prompt": "a red dress"}
    body["reference_image_data"] = base64.b64encode(picture).decode()
    return target.judge(target.client.post("/api/v1/tasks/", json=body))


def send_head(draw: Draw, target: Target) -> str | None:
    """Send a hostile head over a socket of its own; to be closed without an answer is right too."""
    lines = [
        draw.choice(
            [b"GET /health HTTP/1.1", b"GET /health HTTP/9.9", b"\xff\xfe / HTTP/1.1", b"POST / HTTP/1.1", b"GET"]
        )
    ]
    parts = [
        b"Host: a",
        b"Host: a",
        b"Host: b",
        b"Content-Length: -1",
        b"Content-Length: 5",
        b"Transfer-Encoding: chunked",
        b"X: " + b"y" * draw.choice([10, 9_000, 70_000]),
        b"Authorization: Bearer " + draw.randbytes(20).replace(b"\n", b""),
        b": no name",
        b" folded",
        b"Expect: 100-continue",
    ]
    lines += draw.sample(parts, draw.randrange(5))
    with socket.create_connection(("127.0.0.1", target.mesh.port), timeout=60) as connection:
        try:
            connection.sendall(b"\r\n".join(lines) + b"\r\nConnection: close\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        except TimeoutError:
            return f"neither answer nor close to {lines[0]!r}"
        except OSError:
            return None
    status = answer[9:12].decode("latin-1")
    target.answers[status or "closed"] += 1
    if status.startswith("5") and not (status in {"503", "504", "505"} and b"retry-after" in answer.lower()):
        return None if status == "505" else answer[:200].decode("latin-1")
    return None


def send_message(draw: Draw, target: Target) -> str | None:
    """Send bytes to a method by gRPC, with a token, a broken one or none."""
    service, method = draw.choice(_GRPC_METHODS)
    content = draw.choice([b"", draw.randbytes(draw.choice([1, 20, 2_000])), b"\x0a" * 5_000, b"\xff" * 12])
    token = draw.choice([f"Bearer {target.token}", f"Bearer {target.token}", "Bearer x", ""])
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = target.channels[service].unary_unary(method)
    try:
        call(content, timeout=60, metadata=(("authorization", token),) if token else ())
    except grpc.RpcError as error:
        code = error.code()
        target.answers[code.name] += 1
        if code in _UNKNOWING:
            return f"{method}: {code.name} {error.details()}"
    return None


def read_safetensors(draw: Draw, target: Target) -> str | None:
    """Have the worker's check read a hostile file: it refuses it by its own error, or takes it."""
    entry = {
        "dtype": draw.choice(["F32", "F8", 7]),
        "shape": _value(draw),
        "data_offsets": draw.choice([[0, 4], [4, 0]]),
    }
    header = json.dumps({_text(draw)[:40]: draw.choice([entry, entry, _value(draw)]) for _ in range(3)}).encode()
    length = draw.choice([len(header), len(header), 2**63, 0, len(header) * 2])
    content = struct.pack("<Q", length) + header + b"\0" * 4
    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(_spoil(draw, content) if draw.random() < 0.5 else content)
        file.flush()
        try:
            check_safetensors(Path(file.name), "fuzz")
        except MeshError:
            target.answers["refused file"] += 1
        except Exception as error:
            return f"check_safetensors raised {error!r}"
    return None


Shot = Callable[[Draw, Target], str | None]
SHOTS: tuple[Shot, ...] = (
    *([send_body] * 4),
    *([send_query] * 2),
    send_picture,
    send_head,
    send_message,
    read_safetensors,
)


def fire(target: Target, seed: int, numbers: range) -> list[str]:
    """Send the requests with these numbers; return what was wrong, each with its seed and number."""

    def one(number: int) -> str | None:
        draw = Draw(f"{seed}/{number}")
        shot = draw.choice(SHOTS)
        try:
            fault = shot(draw, target)
        except httpx.TransportError as error:
            fault = f"no answer: {error!r}"
        return fault and f"seed {seed} number {number} {shot.__name__}: {fault}"

    with ThreadPoolExecutor(_THREADS) as pool:
        return [fault for fault in pool.map(one, numbers) if fault]


@dataclass(frozen=True, slots=True)
class Watch:
    """Logs and memory of the services, as they were when it began."""

    mesh: RunningMesh
    offsets: dict[str, int]

    @classmethod
    def begin(cls, mesh: RunningMesh) -> "Watch":
        """Remember where the logs end."""
        return cls(mesh, {role: mesh.folder.log(role).stat().st_size for role in SERVICES})

    def tracebacks(self) -> list[str]:
        """Return the log lines with a traceback since then."""
        found = []
        for role, offset in self.offsets.items():
            with self.mesh.folder.log(role).open("rb") as log:
                log.seek(offset)
                found += [f"{role}: {line[:1500].decode('utf-8', 'replace')}" for line in log if _TRACEBACK in line]
        return found

    def memory(self) -> dict[str, int]:
        """Return what each service holds, in MB."""
        return {role: psutil.Process(self.mesh.pid(role)).memory_info().rss >> 20 for role in SERVICES}


def memory_came_back(watch: Watch, before: dict[str, int], seconds: float = 60.0) -> dict[str, tuple[int, int]]:
    """Wait until each service holds at most a tenth more than before; return those that do not."""
    deadline = time.monotonic() + seconds
    while True:
        now = watch.memory()
        # A megabyte for each of its pools' arenas: a tenth of a small process is less than its allocator's grain.
        grown = {role: (before[role], used) for role, used in now.items() if used > before[role] * 1.1 + 4}
        if not grown or time.monotonic() > deadline:
            return grown
        with contextlib.suppress(InterruptedError):
            time.sleep(1)
