"""A minimal HTTP client for load: keep-alive connections that repeat one prepared request.

It runs as a process of its own and does little per request, because it shares the processors with the system that it
measures. `python -m bench.load URL --count N --clients N --body JSON [--header K:V]` prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from urllib.parse import urlsplit


async def _send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> int:
    writer.write(request)
    head = await reader.readuntil(b"\r\n\r\n")
    length = 0
    chunked = False
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            length = int(value)
        chunked = chunked or (name.lower() == b"transfer-encoding" and b"chunked" in value.lower())
    if chunked:
        while size := int(await reader.readline(), 16):
            await reader.readexactly(size + 2)
        await reader.readexactly(2)
    else:
        await reader.readexactly(length)
    return int(head[9:12])


async def load(url: str, *, count: int, clients: int, body: bytes, headers: dict[str, str]) -> dict[str, float]:
    """Send `count` POST requests over `clients` connections.

    Returns:
        Seconds in all, requests a second, and latency percentiles in milliseconds.

    Raises:
        RuntimeError: a request was not answered with 200.
    """
    parts = urlsplit(url)
    lines = [f"POST {parts.path} HTTP/1.1", f"Host: {parts.netloc}", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(body)}", *(f"{name}: {value}" for name, value in headers.items())]
    request = ("\r\n".join(lines) + "\r\n\r\n").encode() + body
    left = count
    took: list[float] = []

    async def client() -> None:
        nonlocal left
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
        while left > 0:
            left -= 1
            begun = time.perf_counter()
            status = await _send(reader, writer, request)
            took.append(time.perf_counter() - begun)
            if status != 200:
                raise RuntimeError(f"answered {status}")
        writer.close()

    begun = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(clients)))
    seconds = time.perf_counter() - begun
    cuts = statistics.quantiles(took, n=100)
    return {
        "seconds": seconds,
        "per_second": count / seconds,
        "p50_ms": cuts[49] * 1e3,
        "p99_ms": cuts[98] * 1e3,
    }


def main() -> int:
    """Run one load and print its figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--count", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--body", default="{}")
    parser.add_argument("--header", action="append", default=[])
    given = parser.parse_args()
    headers = dict(header.split(":", 1) for header in given.header)
    figures = asyncio.run(
        load(given.url, count=given.count, clients=given.clients, body=given.body.encode(), headers=headers)
    )
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
