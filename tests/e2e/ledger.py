"""What callers were promised, and whether it is there once, whole and told: what stories that break things end with."""

import contextlib
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import orjson
import psycopg

from tests.e2e.harness import MeshView, story_fault, until


@dataclass
class Receiver:
    """Takes webhooks over HTTP and keeps the events of each task in the order of their arrival."""

    events: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    repeated: int = 0
    _ids: set[str] = field(default_factory=set)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, ident: str, body: bytes) -> None:
        """Keep an event, once."""
        event = orjson.loads(body)
        with self._lock:
            if ident in self._ids:
                self.repeated += 1
                return
            self._ids.add(ident)
            self.events.setdefault(event["task_id"], []).append(event)

    def last_state(self, task_id: str) -> str | None:
        """Return the state that the last event of a task told."""
        with self._lock:
            events = self.events.get(task_id)
            return str(events[-1].get("status")) if events else None


@contextlib.contextmanager
def receiving(port: int) -> Iterator[Receiver]:
    """Run a receiver on a port of loopback."""
    receiver = Receiver()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            receiver.take(self.headers["webhook-id"], body)
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 128

        def handle_error(self, request: Any, client_address: Any) -> None:
            """Say nothing: a sender that was killed leaves a broken connection."""
            del request, client_address

    server = Server(("127.0.0.1", port), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@dataclass(slots=True)
class Made:
    """What one tenant was promised: identifiers of answered creates."""

    tasks: list[str] = field(default_factory=list)
    workflows: list[str] = field(default_factory=list)


@dataclass
class Faults:
    """What is amiss between what callers were promised and what is there.

    Attributes:
        lost: Accepted and not there, not COMPLETED, without its object, or without the webhook of its end.
        doubled: Made twice, completed twice, or two that share an object.
        orphans: Tasks and attempts without an end, stories that contradict themselves, objects and deliveries that
            belong to nothing.
        miscounted: Statistics that differ from what is listed.
        attempts: All attempts by their ends, which are no fault.
    """

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    miscounted: list[str] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)

    @property
    def clean(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.doubled or self.orphans or self.miscounted)

    @property
    def worst(self) -> list[str]:
        """The first of each kind."""
        kinds = ("lost", "doubled", "orphans", "miscounted")
        return [f"{kind}: {each}" for kind in kinds for each in getattr(self, kind)[:10]]


_UNSETTLED = """
    SELECT (SELECT count(*) FROM tasks.tasks WHERE status IN ('PENDING', 'EXECUTING'))
         + (SELECT count(*) FROM tasks.webhook_deliveries WHERE status = 'PENDING')
         + (SELECT count(*) FROM tasks.object_sweeps)
         + (SELECT count(*) FROM workflows.workflows WHERE status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED'))
"""


def wait_settled(mesh: MeshView, seconds: float) -> None:
    """Wait until nothing is left to do; what never ends is counted afterwards."""

    def settled() -> bool:
        try:
            with mesh.database() as connection:
                row = connection.execute(_UNSETTLED).fetchone()
            return row == (0,) and httpx.get(f"{mesh.url}/health", timeout=5).status_code == 200
        except (psycopg.Error, httpx.TransportError):
            return False

    with contextlib.suppress(AssertionError):
        until(settled, "everything has ended", seconds, pause_seconds=0.5)


def count(mesh: MeshView, made: Mapping[str, Made], receiver: Receiver | None = None) -> Faults:
    """Compare what is there with what was promised, once nothing is left to do.

    Args:
        mesh: The mesh.
        made: What each tenant was promised; it has nothing else.
        receiver: Who took the webhooks of the tasks; None where they have none.
    """
    faults = Faults()
    for tenant, promised in made.items():
        with mesh.http(tenant) as client:
            _count_tenant(mesh, client, tenant, promised, receiver, faults)
    _count_rows(mesh, faults)
    return faults


def _count_tenant(
    mesh: MeshView, client: httpx.Client, tenant: str, made: Made, receiver: Receiver | None, faults: Faults
) -> None:
    listed = until(lambda: mesh.tasks(client), "the tasks are listed")
    promised = list(made.tasks)
    flows = Counter[str]()
    for ident in made.workflows:
        flow = client.get(f"/api/v1/workflows/{ident}").json()
        flows[flow["status"]] += 1
        promised += [step["task_id"] or f"a step of workflow {ident}" for step in flow["steps"]]
        if flow["status"] != "COMPLETED":
            faults.lost.append(f"workflow {ident} is {flow['status']}")
    found = Counter(task["id"] for task in listed)
    faults.lost += sorted((Counter(promised) - found).elements())
    # A second task for one create or one step is a task that nobody was promised.
    faults.doubled += sorted((found - Counter(promised)).elements())

    _compare(client, "stats", Counter(task["status"] for task in listed), faults)
    _compare(client, "workflows/stats", flows, faults)

    objects = mesh.objects(tenant)
    results = Counter(task["result_path"] for task in listed if task["status"] == "COMPLETED")
    faults.lost += [f"object {path}" for path in results if path not in objects]
    faults.doubled += [f"object {path}" for path, times in results.items() if times > 1]
    faults.orphans += [f"object {path}" for path in objects - set(results)]
    with ThreadPoolExecutor(4) as pool:
        for task, attempts in zip(
            listed, pool.map(lambda task: mesh.attempts(client, task["id"]), listed), strict=True
        ):
            _count_task(task, attempts, faults)
    if receiver is None:
        return
    # A step's task has no webhook of its own.
    told = {ident: receiver.last_state(ident) for ident in made.tasks}
    faults.lost += [
        f"webhook of {ident}: the last told {state}" for ident, state in told.items() if state != "COMPLETED"
    ]


def _compare(client: httpx.Client, page: str, truth: Counter[str], faults: Faults) -> None:
    """Compare the counts of a tenant's statistics by state with what it has."""
    told = client.get(f"/api/v1/monitoring/{page}").json()
    counted = {state: number for state, number in told["by_status"].items() if number}
    if counted != truth:
        faults.miscounted.append(f"{page} tells {counted}, there are {dict(truth)}")


def _count_task(task: dict[str, Any], attempts: list[dict[str, Any]], faults: Faults) -> None:
    ident = task["id"]
    faults.attempts.update(each["outcome"] or "without an end" for each in attempts)
    if task["status"] != "COMPLETED":
        where = faults.lost if task["status"] in {"FAILED", "CANCELLED"} else faults.orphans
        where.append(f"task {ident} is {task['status']}: {task['errors'][-1:]}")
        return
    if sum(each["outcome"] == "COMPLETED" for each in attempts) > 1:
        faults.doubled.append(f"task {ident} completed twice")
    elif fault := story_fault(task, attempts):
        faults.orphans.append(f"task {ident}: {fault}")


def _count_rows(mesh: MeshView, faults: Faults) -> None:
    """Count what no tenant's view shows: attempts without an end, and deliveries that did not arrive."""
    with mesh.database() as connection:
        open_ones = connection.execute("SELECT task_id, attempt FROM tasks.attempts WHERE ended_at IS NULL").fetchall()
        undelivered = connection.execute(
            "SELECT id, status, last_error FROM tasks.webhook_deliveries WHERE status <> 'DELIVERED'"
        ).fetchall()
        unowned = connection.execute(
            "SELECT id FROM tasks.webhook_deliveries AS delivery"
            " WHERE NOT EXISTS (SELECT FROM tasks.tasks WHERE id = delivery.entity_id)"
        ).fetchall()
    faults.orphans += [f"attempt {attempt} of {task} has no end" for task, attempt in open_ones]
    faults.orphans += [f"delivery {ident} of no task" for (ident,) in unowned]
    faults.lost += [f"webhook {ident} is {status}: {error}" for ident, status, error in undelivered]
