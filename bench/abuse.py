"""Misuse a mesh as a greedy tenant or a stranger would, and print what it cost: memory, and another tenant's wait.

Each row is one function with `@row`; its load and its time are bounded, and it speaks to loopback alone. The wait is a
create-to-done of a no-op task of another tenant (to-webhook, or to-stream, where a row says so), and its median is held
against three times its median at rest. A process of a service may take 300 MB; what its children take is shown too.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import io
import json
import resource
import select
import socket
import statistics
import struct
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from PIL import Image

from atelier_cli.embedded.process import free_ports
from atelier_cli.folder import DataFolder
from atelier_cli.tokens import issue
from bench.stacks import mesh

_ROLES = ("gateway", "tasks", "workflows", "worker")
_SIDE = 8_000
_HANGING_PORTS = 80
_MAX_PARENT_MB = 300
_TIMES_IDLE = 3.0
# Below this a wait is too short to be told from the noise of a busy machine.
_LEAST_WAIT_SECONDS = 0.5
_PROBE_SECONDS = 60.0


@dataclass
class Abuse:
    """What a row works with.

    Attributes:
        url: The gateway.
        grpc: host:port of the tasks service.
        headers: Of the greedy tenant's requests.
        hanging: Addresses that take a request and never answer.
        trickling: An address that sends a picture, one byte a second.
        answers: What the mesh answered, counted.
    """

    url: str
    grpc: str
    headers: dict[str, str]
    hanging: list[str]
    trickling: str
    answers: Counter[str] = field(default_factory=Counter)

    @property
    def address(self) -> tuple[str, int]:
        """The gateway's socket address."""
        parsed = httpx.URL(self.url)
        return parsed.host, parsed.port or 80

    def create(self, body: dict[str, Any]) -> str | None:
        """Create a task as the greedy tenant; return its id if it is accepted."""
        return self.post(json.dumps({"origin_instance": "bench", **body}))

    def post(self, body: str) -> str | None:
        """Post a body as the greedy tenant."""
        try:
            answer = httpx.post(f"{self.url}/api/v1/tasks/", content=body, headers=self.headers, timeout=60)
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        return str(answer.json()["id"]) if answer.status_code == 200 else None

    def together(self, times: int, act: Callable[[int], object], at_once: int = 8) -> None:
        """Do something so often, some at once."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(act, range(times)))


Act = Callable[[Abuse], None]


@dataclass(frozen=True, slots=True)
class _Row:
    name: str
    probe: str
    act: Act


_ROWS: list[_Row] = []


def row(name: str, probe: str = "done") -> Callable[[Act], Act]:
    """Register a row; `probe` is what the other tenant waits for: `done`, `webhook` or `stream`."""

    def add(act: Act) -> Act:
        _ROWS.append(_Row(name, probe, act))
        return act

    return add


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
    picture = base64.b64encode(_riff(_webp_image())).decode()
    abuse.together(8, lambda _: abuse.create(_generation(reference_image_data=picture)))


@row("4 creates with an animated WebP, 4 x 64 MP")
def animated_bombs(abuse: Abuse) -> None:
    """Send animations whose every frame is a large picture."""
    picture = base64.b64encode(_animated_webp(_webp_image(), frames=4)).decode()
    abuse.together(4, lambda _: abuse.create(_generation(reference_image_data=picture)))


@row("8 uploads with a WebP of 8000x8000")
def stored_bombs(abuse: Abuse) -> None:
    """Store the same pictures, which the gateway checks."""
    picture = _riff(_webp_image())

    def upload(number: int) -> None:
        files = {"file": ("a.webp", picture, "image/webp")}
        path = f"{abuse.url}/api/v1/storage/images/bomb-{number}.webp"
        headers = {"Authorization": abuse.headers["Authorization"]}
        try:
            abuse.answers[str(httpx.post(path, files=files, headers=headers, timeout=60).status_code)] += 1
        except httpx.HTTPError as error:
            abuse.answers[type(error).__name__] += 1

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
    body = {"task_type": "IMAGE_ADJUSTER", "input_image": abuse.trickling, "aspect_ratio": 1.0}
    abuse.together(12, lambda _: abuse.create(body))
    time.sleep(8)


@row("640 tasks with webhooks to 80 hanging ports", probe="webhook")
def hanging_receivers(abuse: Abuse) -> None:
    """Have webhooks sent to receivers that never answer, and wait eight seconds."""
    hooks = abuse.hanging
    abuse.together(640, lambda i: abuse.create({"task_type": "NOOP", "webhook_url": hooks[i % len(hooks)]}))
    time.sleep(8)


def _status(connection: socket.socket) -> str:
    """Return the status that comes over a connection."""
    return connection.recv(64)[9:12].decode("latin-1") or "closed"


def _generation(**fields: object) -> dict[str, object]:
    return {"task_type": "GENERATION", "prompt": "a red dress", **fields}


def _webp_image() -> bytes:
    """Return the VP8L chunk of one plain picture of 64 MP."""
    out = io.BytesIO()
    Image.new("RGB", (_SIDE, _SIDE), (200, 30, 30)).save(out, "WEBP", lossless=True, method=0)
    return out.getvalue()[12:]


def _riff(content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", len(content) + 4) + b"WEBP" + content


def _animated_webp(image: bytes, frames: int) -> bytes:
    """Wrap one picture as every frame of an animation."""
    side = struct.pack("<I", _SIDE - 1)[:3]
    frame = b"\0" * 6 + side + side + struct.pack("<I", 100)[:3] + b"\0" + image
    head = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + side + side
    animation = b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
    return _riff(head + animation + (b"ANMF" + struct.pack("<I", len(frame)) + frame) * frames)


class _Peers(threading.Thread):
    """Servers on loopback: some hang, one trickles, one takes webhooks."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.arrived: dict[str, float] = {}
        *self.hanging, self.trickling, self.hook = free_ports(_HANGING_PORTS + 2)
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()

    def run(self) -> None:
        """Serve until the process ends."""
        self._loop.run_until_complete(self._start())
        self._ready.set()
        self._loop.run_forever()

    def started(self) -> _Peers:
        """Start and wait until all listen."""
        self.start()
        self._ready.wait(30)
        return self

    async def _start(self) -> None:
        for port in self.hanging:
            await asyncio.start_server(self._hang, "127.0.0.1", port)
        await asyncio.start_server(self._trickle, "127.0.0.1", self.trickling)
        await asyncio.start_server(self._take, "127.0.0.1", self.hook)

    async def _hang(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while await reader.read(65_536):
                pass
        writer.close()

    async def _trickle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ncontent-length: 100000\r\n\r\n\x89PNG\r\n\x1a\n"
            )
            for _ in range(70):
                await writer.drain()
                await asyncio.sleep(1)
                writer.write(b"\0")
        writer.close()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
            length = int(head.split("content-length:")[1].split("\r\n")[0])
            event = json.loads(await reader.readexactly(length))
            if event.get("status") == "COMPLETED":
                self.arrived[event["task_id"]] = time.monotonic()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
            await writer.drain()
        writer.close()


@dataclass
class _Other:
    """The other tenant: one task after the other, and what each wait was."""

    url: str
    headers: dict[str, str]
    peers: _Peers
    waits: dict[str, list[float]] = field(default_factory=lambda: {"done": [], "webhook": [], "stream": []})
    failures: Counter[str] = field(default_factory=Counter)

    def once(self, probe: str) -> None:
        """Create a task and wait for its end, as `probe` says."""
        began = time.monotonic()
        try:
            self._wait(probe, began)
        except (httpx.HTTPError, TimeoutError) as error:
            self.failures[str(error)[:60] or type(error).__name__] += 1
        self.waits[probe].append(time.monotonic() - began)

    def _wait(self, probe: str, began: float) -> None:
        body = {
            "task_type": "NOOP",
            "origin_instance": "bench",
            "steps": 0,
            "webhook_url": f"http://127.0.0.1:{self.peers.hook}/",
        }
        key = {"Idempotency-Key": str(uuid.uuid4())}
        with httpx.Client(base_url=self.url, headers=self.headers, timeout=_PROBE_SECONDS) as client:
            ident = client.post("/api/v1/tasks/", json=body, headers=key).raise_for_status().json()["id"]
            if probe == "stream":
                with client.stream("GET", f"/api/v1/tasks/{ident}/events") as stream:
                    stream.raise_for_status()
                    for _ in stream.iter_lines():
                        pass
                return
            while time.monotonic() - began < _PROBE_SECONDS:
                if probe == "webhook" and ident in self.peers.arrived:
                    return
                if probe == "done" and client.get(f"/api/v1/tasks/{ident}").json()["status"] == "COMPLETED":
                    return
                time.sleep(0.02)
        message = f"no end within {_PROBE_SECONDS:.0f} s"
        raise TimeoutError(message)


@dataclass
class _Memory:
    """Memory of each role, its children apart, in MB."""

    pids: dict[str, int]
    peak: dict[str, int] = field(default_factory=dict)

    def now(self) -> dict[str, int]:
        """Measure, and keep the peak."""
        found: dict[str, int] = {}
        for role, pid in self.pids.items():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                found[role] = process.memory_info().rss >> 20
                found[f"{role}'s children"] = sum(_resident(each) for each in process.children(recursive=True)) >> 20
        for name, used in found.items():
            self.peak[name] = max(self.peak.get(name, 0), used)
        return found


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.Error:
        return 0


@contextlib.contextmanager
def _repeating(act: Callable[[], object], pause_seconds: float) -> Iterator[None]:
    ends = threading.Event()

    def repeat() -> None:
        while not ends.is_set():
            act()
            ends.wait(pause_seconds)

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()


def _measure(one: _Row, abuse: Abuse, other: _Other, pids: dict[str, int], rest_seconds: float) -> bool:
    """Run one row and print it; return whether it came out right."""
    for _ in range(5):
        other.once(one.probe)
    idle = statistics.median(other.waits[one.probe])
    other.waits[one.probe].clear()
    memory = _Memory(pids)
    before = memory.now()
    with _repeating(memory.now, 0.1), _repeating(lambda: other.once(one.probe), 0.1):
        one.act(abuse)
    time.sleep(rest_seconds)
    after = memory.now()
    waits = other.waits[one.probe]
    wait, longest = statistics.median(waits), max(waits)
    grown = max(memory.peak, key=lambda name: memory.peak[name] - before.get(name, 0))
    parents = {name: memory.peak[name] for name in pids if name in memory.peak}
    wrong = [f"{name} at {used} MB" for name, used in parents.items() if used > _MAX_PARENT_MB]
    if wait > max(_TIMES_IDLE * idle, _LEAST_WAIT_SECONDS):
        wrong.append("wait")
    wrong += [f"{count} probes: {what}" for what, count in other.failures.items()]
    if missing := [name for name in pids if name not in after]:
        wrong.append(f"gone: {', '.join(missing)}")
    answers = ", ".join(f"{what} x{count}" for what, count in sorted(abuse.answers.items()))
    print(
        f"| {one.name} | {answers} | {grown} | {before.get(grown, 0)} | {memory.peak[grown]} | {after.get(grown, 0)}"
        f" | {idle:.2f} | {wait:.2f} ({longest:.2f}) | {'; '.join(wrong) or 'right'} |",
        flush=True,
    )
    return not wrong


def main() -> int:
    """Start a mesh, run the rows, print the table; 1 if a row came out wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.abuse", description=__doc__)
    parser.add_argument("--only", default="", help="rows whose name contains this text")
    parser.add_argument("--rest", type=float, default=5.0, help="seconds between a row's end and the last measurement")
    given = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 8_192)), hard))
    peers = _Peers().started()
    allowed = ",".join(f"127.0.0.1:{port}" for port in (*peers.hanging, peers.trickling, peers.hook))
    environment = {"ATELIER_FETCH_ALLOW_PRIVATE": allowed, "ATELIER_WORKER_TASK_TYPES": "NOOP,IMAGE_ADJUSTER"}
    with contextlib.ExitStack() as opened:
        path = Path(opened.enter_context(tempfile.TemporaryDirectory(prefix="atelier-abuse-")))
        path.chmod(0o711)  # PostgreSQL drops to `nobody` under root
        stack = opened.enter_context(mesh(path, None, environment))
        folder = DataFolder(stack.folder)
        url = stack.url.removesuffix("/api/v1/tasks/")

        def headers(tenant: str) -> dict[str, str]:
            token = issue(folder, tenant=tenant, scopes=("read", "write"), ttl_seconds=3600)
            return {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}

        pids = {role: stack.processes[role] for role in _ROLES}
        print("| what was done | answers | most grown | before, MB | peak | after | idle wait, s | wait (longest) | |")
        print("|---|---|---|---|---|---|---|---|---|", flush=True)
        results = []
        for one in _ROWS:
            if given.only not in one.name:
                continue
            abuse = Abuse(
                url=url,
                grpc=f"127.0.0.1:{folder.running().ports['tasks']}",
                headers=headers("greedy"),
                hanging=[f"http://127.0.0.1:{port}/" for port in peers.hanging],
                trickling=f"http://127.0.0.1:{peers.trickling}/a.png",
            )
            results.append(_measure(one, abuse, _Other(url, headers("other"), peers), pids, given.rest))
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
