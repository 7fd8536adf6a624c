"""Tasks that a provider executes beside bare HTTP calls: as many at once, to one server, for the same answers.

The provider is a server that speaks Gemini's protocol: each answer comes after a second, with a picture of a megabyte.
The bare calls post the same request and read the same answer, and do nothing with it. A task of the mesh is leased,
written down before and after its call, judged, stored and completed besides.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import psycopg
from PIL import Image

from bench import stacks
from bench.calls_floor import floor
from bench.stacks import Stack

_SIDE = 590  # of a picture of noise, whose PNG has a megabyte; one of 130 has 50 kB
_KEY = "bench"
_PATH = "/v1/models/gemini-3-pro-image:generateContent"
_BODY = {"task_type": "GENERATION", "origin_instance": "bench", "prompt": "noise", "provider_type": "VERTEX"}
_SAMPLE_SECONDS = 0.02
_PATIENCE_SECONDS = 300.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class CallsRound:
    """Figures of one round.

    Attributes:
        bare: Seconds of the bare calls, from the first to the last.
        tasks: Seconds of the tasks, from the first one's start to the last one's end.
        calls: Seconds from the first call of the worker to the last answer that the server sent it.
        peak: MiB of the worker at its peak.
        children: MiB of the processes that judge its pictures, at their peak.
        processor_ms: Milliseconds of processor a task, by process.
    """

    bare: float
    tasks: float
    calls: float
    peak: float
    children: float
    processor_ms: Mapping[str, float]


def serve(latency: float, side: int) -> None:
    """Serve Gemini's protocol until the process is ended; the port is printed, and `GET /window` tells of the calls."""
    asyncio.run(_serve(latency, answer_of(side)))


def answer_of(side: int) -> bytes:
    """Return an answer with a picture of noise."""
    noise = Image.merge("RGB", [Image.effect_noise((side, side), 90) for _ in range(3)])
    held = io.BytesIO()
    noise.save(held, "PNG", compress_level=1)
    part = {"inlineData": {"mimeType": "image/png", "data": base64.b64encode(held.getvalue()).decode()}}
    candidate = {"content": {"parts": [part], "role": "model"}, "finishReason": "STOP", "index": 0}
    return json.dumps({"candidates": [candidate], "modelVersion": "bench"}).encode()


async def _serve(latency: float, body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    window: list[float] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.readuntil(b"\r\n\r\n")
        if asked.startswith(b"GET /window"):
            told = json.dumps(window).encode()
            window.clear()
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(told), told))
        else:
            length = next(line for line in asked.lower().split(b"\r\n") if line.startswith(b"content-length:"))
            await reader.readexactly(int(length.partition(b":")[2]))
            window.append(time.time())
            await asyncio.sleep(latency)
            writer.write(head + body)
            await writer.drain()
            window.append(time.time())
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


@contextmanager
def provider(latency: float, side: int) -> Iterator[str]:
    """Yield the address of such a server, in a process of its own."""
    command = [sys.executable, "-m", "bench.providers", "--serve", "--latency", str(latency), "--side", str(side)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
        finally:
            process.terminate()


async def bare(url: str, count: int) -> float:
    """Make so many calls at once; return the seconds that they took."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    body = {"contents": [{"parts": [{"text": "noise"}], "role": "user"}]}
    async with httpx.AsyncClient(limits=limits, timeout=_PATIENCE_SECONDS, headers={"x-goog-api-key": _KEY}) as client:
        begun = time.perf_counter()
        answers = await asyncio.gather(*(client.post(url + _PATH, json=body) for _ in range(count)))
        took = time.perf_counter() - begun
    assert {answer.status_code for answer in answers} == {200}
    return took


def measure(stack: Stack, url: str, count: int) -> CallsRound:
    """Make the bare calls, then have as many tasks executed that wait while the worker stands still.

    Raises:
        TimeoutError: The tasks did not complete within five minutes.
    """
    alone = asyncio.run(bare(url, count))
    httpx.get(url + "/window")
    worker = psutil.Process(stack.processes["providers"])
    with psycopg.connect(stack.dsn, autocommit=True) as connection:
        before = stack.completed(connection)
        worker.send_signal(signal.SIGSTOP)
        try:
            stacks.load(stack, count=count, clients=16)
        finally:
            worker.send_signal(signal.SIGCONT)
        used = stack.processor_seconds()
        with _peak_of(worker) as peak:
            begun = time.perf_counter()
            while stack.completed(connection) < before + count:
                if time.perf_counter() - begun > _PATIENCE_SECONDS:
                    message = f"{stack.completed(connection) - before} of {count} tasks completed"
                    raise TimeoutError(message)
                time.sleep(0.02)
        row = connection.execute(
            f"SELECT extract(epoch FROM max(completed_at) - min(started_at)) FROM"  # noqa: S608 -- constants
            f" (SELECT * FROM {stack.table} ORDER BY created_at DESC LIMIT {count}) AS latest"
        ).fetchone()
    assert row is not None
    window = httpx.get(url + "/window").json()
    spent = {name: (seconds - used[name]) / count * 1e3 for name, seconds in stack.processor_seconds().items()}
    return CallsRound(alone, float(row[0]), max(window) - min(window), peak[0] / _MIB, peak[1] / _MIB, spent)


@contextmanager
def _peak_of(process: psutil.Process) -> Iterator[list[int]]:
    """Sample the memory of a process, and that of its children in all, while the block runs."""
    peak, over = [0, 0], threading.Event()

    def sample() -> None:
        while not over.wait(_SAMPLE_SECONDS):
            peak[0] = max(peak[0], process.memory_info().rss)
            held = 0
            for child in process.children():
                try:
                    held += child.memory_info().rss
                except psutil.Error:  # it has ended
                    continue
            peak[1] = max(peak[1], held)

    sampler = threading.Thread(target=sample)
    sampler.start()
    try:
        yield peak
    finally:
        over.set()
        sampler.join()


def main() -> int:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200, help="calls at once")
    parser.add_argument("--latency", type=float, default=1.0, help="seconds until the server answers")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", type=int, default=_SIDE, help="pixels a side of the picture that it answers with")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.serve:
        serve(given.latency, given.side)
        return 0
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch, provider(given.latency, given.side) as url:
        folder = Path(scratch)
        environment = {
            "ATELIER_GEMINI_KEY": _KEY,
            "ATELIER_GEMINI_URL": url,
            "ATELIER_WORKER_CALLS": str(given.count),
            "ATELIER_SERVED_PROVIDERS": "LOCAL,VERTEX",
        }
        body = {**_BODY, "width": given.side, "height": given.side}
        with (
            stacks.postgres(folder) as server,
            stacks.mesh(folder, stacks.create_database(server, "mesh"), environment, body) as stack,
        ):
            measure(stack, url, 2)  # the client is imported
            rounds = [measure(stack, url, given.count) for _ in range(given.rounds)]
        least = floor(folder, answer_of(given.side))
    _print_table(rounds, given.count)
    cores, alone = len(os.sched_getaffinity(0)), statistics.median(one.bare for one in rounds)
    print(
        f"the least is {least.whole:.1f}: answer read {least.reading:.1f}, picture decoded {least.judging:.1f}, "
        f"stored {least.storing:.1f} and in the store {least.store:.1f}; "
        f"by it alone {cores} cores reach {least.ratio(alone, given.count, cores):.2f}"
    )
    return 0


def _print_table(rounds: list[CallsRound], count: int) -> None:
    print(f"| round | {count} bare calls, s | calls of the worker, s | tasks, s | ratio | worker, MiB | its children |")
    print("|---|---|---|---|---|---|---|")
    for number, one in enumerate(rounds, 1):
        print(
            f"| {number} | {one.bare:.2f} | {one.calls:.2f} | {one.tasks:.2f} | {one.tasks / one.bare:.2f} "
            f"| {one.peak:.0f} | {one.children:.0f} |"
        )
    parts = {name: statistics.median(one.processor_ms[name] for one in rounds) for name in rounds[0].processor_ms}
    listed = ", ".join(f"{name} {value:.1f}" for name, value in parts.items())
    print(f"milliseconds of processor a task: {listed}; in all {sum(parts.values()):.1f}")


if __name__ == "__main__":
    sys.exit(main())
