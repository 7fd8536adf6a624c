"""What metrics and spans cost a create: the processor time of meshes that record no, some and all traces, by turns.

Processor time and not wall time, so that other work on the machine blurs the figures less. Metrics cannot be switched
off: what they cost is the number of observations that a create leaves on the pages of gateway and tasks, times what one
takes with an exemplar. The same is told of spans, as an upper bound: their collector works in the same process.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import httpx
import psycopg
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from prometheus_client import Histogram

from atelier_cli.folder import DataFolder
from bench.load import load
from bench.stacks import Stack, create_database, mesh, postgres
from meshkit import spans, tracing
from meshkit.metrics import LATENCY_BUCKETS
from meshkit.otlp import OtlpSender
from meshkit.span_export import SpanExporter

# What a create passes; the worker executes its task besides.
ROLES = ("gateway", "tasks")
RATIOS = {"no collector": None, "a tenth of the traces": "0.1", "all traces": "1"}
BASE, ALL = "no collector", "all traces"
COUNT = re.compile(r"^atelier_\S+?(?:_count|_total)(?:\{[^}]*\})? (\S+)", re.MULTILINE)
WAIT_SECONDS = 120.0


class CountingCollector(trace_service_pb2_grpc.TraceServiceServicer):
    """Counts spans."""

    def __init__(self) -> None:
        self.spans: Counter[str] = Counter()  # by service

    def Export(  # noqa: N802 -- gRPC's name
        self, request: trace_service_pb2.ExportTraceServiceRequest, _context: grpc.ServicerContext
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Take spans."""
        for one in request.resource_spans:
            [service] = [fact.value.string_value for fact in one.resource.attributes if fact.key == "service.name"]
            self.spans[service] += sum(len(scope.spans) for scope in one.scope_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def main() -> int:
    """Create by turns, and print the medians of what a create costs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="creates of a turn")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each mesh")
    parser.add_argument("--clients", type=int, default=16)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="atelier-bench-") as scratch, ExitStack() as stack:
        folder = Path(scratch)
        collector, address = stack.enter_context(_collecting())
        server = stack.enter_context(postgres(folder))
        stacks: dict[str, Stack] = {}
        for number, (name, ratio) in enumerate(RATIOS.items()):
            traced = {} if ratio is None else {"ATELIER_OTLP_ENDPOINT": address, "ATELIER_TRACE_RATIO": ratio}
            own = folder / f"mesh-{number}"
            own.mkdir(mode=0o711)
            settings = {"ATELIER_TRAINER": "off", "ATELIER_METRICS_PORT": "", **traced}
            stacks[name] = stack.enter_context(mesh(own, create_database(server, f"bench{number}"), settings))
        costs: dict[str, list[float]] = {name: [] for name in stacks}
        for one in stacks.values():
            _turn(one, given.count // 4, given.clients)  # what is done once is not counted
        for _ in range(given.rounds):
            for name, one in stacks.items():
                costs[name].append(_turn(one, given.count, given.clients))
        base = statistics.median(costs[BASE])
        for name, found in costs.items():
            middle = statistics.median(found)
            spread = f"{min(found) * 1e6:.0f} to {max(found) * 1e6:.0f}"
            print(f"{name}: {middle * 1e6:.0f} us of processor a create ({spread}), {middle / base - 1:+.1%}")
        before = sum(collector.spans[role] for role in ROLES)
        _turn(stacks[ALL], given.count, given.clients)
        spans_made = (sum(collector.spans[role] for role in ROLES) - before) / given.count
        each = _span_seconds(collector, address)
        print(
            f"spans: {spans_made:.1f} a create where all are recorded, at most {each * 1e6:.0f} us each, "
            f"{spans_made * each / base:.1%} of a create; a tenth of that by default"
        )
        observations = _observations(stacks[BASE], given.count, given.clients)
        each = _observation_seconds()
        print(
            f"metrics: {observations:.1f} observations a create, {each * 1e6:.2f} us each with an exemplar, "
            f"{observations * each / base:.1%} of a create"
        )
    return 0


@contextmanager
def _collecting() -> Iterator[tuple[CountingCollector, str]]:
    collector = CountingCollector()
    server = grpc.server(ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call] # generated without types
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield collector, f"http://127.0.0.1:{port}"
    server.stop(1).wait()


def _turn(stack: Stack, count: int, clients: int) -> float:
    """Create tasks, wait until all have ended and their spans are sent; processor seconds of a create."""
    with psycopg.connect(stack.dsn, autocommit=True) as connection:
        wanted = stack.completed(connection) + count
        before = stack.processor_seconds()
        asyncio.run(load(stack.url, count=count, clients=clients, body=stack.body.encode(), headers=stack.headers))
        until = time.monotonic() + WAIT_SECONDS
        while stack.completed(connection) < wanted:
            if time.monotonic() > until:
                raise TimeoutError(f"{stack.name}: tasks have not ended in {WAIT_SECONDS:.0f} s")
            time.sleep(0.05)
        time.sleep(2)  # the queues of spans are sent every second; each mesh waits as long
    after = stack.processor_seconds()
    return sum(after[role] - before[role] for role in ROLES) / count


def _observations(stack: Stack, count: int, clients: int) -> float:
    """Return how much the counts of gateway and tasks grow by a create, its task's life included."""
    record = DataFolder(stack.folder).running()
    pages = [f"http://127.0.0.1:{record.ports[f'metrics_{role}']}/metrics" for role in ROLES]

    def counted() -> float:
        return sum(float(value) for page in pages for value in COUNT.findall(httpx.get(page).text))

    before = counted()
    _turn(stack, count, clients)
    return (counted() - before) / count


def _span_seconds(collector: CountingCollector, address: str) -> float:
    """Return what a span takes until the collector has it, the collector's own work included."""
    repeats = 20_000
    sender = OtlpSender(address, "bench")
    exporter = SpanExporter(sender.send, queue=repeats)
    spans.record_with(exporter.take)
    trace = tracing.begin(f"00-{'a' * 32}-{'b' * 16}-01")
    facts = {"rpc.system": "grpc", "rpc.method": "TasksService/CreateTask", "rpc.response.status_code": "OK"}
    begun = time.process_time()
    for _ in range(repeats):
        spans.record(trace, "TasksService/CreateTask", spans.SpanKind.SERVER, seconds=0.01, attributes=facts)
    until = time.monotonic() + WAIT_SECONDS
    while collector.spans["bench"] < repeats and time.monotonic() < until:
        time.sleep(0.05)
    seconds = (time.process_time() - begun) / repeats
    spans.record_with(None)
    exporter.close()
    return seconds


def _observation_seconds() -> float:
    """Return what an observation with an exemplar takes."""
    series = Histogram("bench_seconds", "x", ("one",), buckets=LATENCY_BUCKETS, registry=None).labels("x")
    repeats = 50_000
    begun = time.process_time()
    for number in range(repeats):
        series.observe(number % 60 / 10, {"trace_id": "0123456789abcdef0123456789abcdef"})
    return (time.process_time() - begun) / repeats


if __name__ == "__main__":
    sys.exit(main())
