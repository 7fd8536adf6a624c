"""Kill every kind of process at random under load, then count what was lost, doubled or orphaned.

`make chaos` runs the long form; `test_chaos.py` a short one. The seed draws who is struck, in which order, how, and
after which pause; the load is the same for every seed.
"""

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import orjson
import psycopg

from atelier_cli.embedded.process import free_ports
from tests.e2e.harness import NOOP_ENVIRONMENT, RunningMesh, post_until_answered, story_fault, until

TENANTS = tuple(f"chaos-{number}" for number in range(1, 6))
LONG_TASKS = 10_000
_STEPS = {"steps": 2, "step_ms": 20, "result_bytes": 64}
_CLIENTS = 10
_LONGEST_CUT_SECONDS = 4.0
# Of a chaos run's own mesh: a task may be struck often, and that must not end it.
CHAOS_ENVIRONMENT = {"ATELIER_MAX_RETRIES": "50"}


@dataclass(frozen=True, slots=True)
class Strike:
    """One blow: who gets it, how, and how long after the one before.

    Attributes:
        victim: A role of the mesh, or `child`: the worker's process that owns the device.
        manner: `kill`; `stop` stands still for `seconds` and goes on; `wipe` also loses the disk; `restart` ends in
            order.
        pause_seconds: Waited before it.
        seconds: How long a stopped process stands still.
    """

    victim: str
    manner: str
    pause_seconds: float
    seconds: float = 0.0

    @property
    def name(self) -> str:
        """What it does, for the table."""
        return f"{self.victim} {self.manner}"


_BLOWS = (
    ("tasks", "kill"),
    ("workflows", "kill"),
    ("gateway", "kill"),
    ("worker", "kill"),
    ("child", "kill"),
    ("nats", "wipe"),
    ("postgres", "restart"),
    ("postgres", "kill"),
    ("s3", "stop"),
    ("s3", "kill"),
    ("tasks", "stop"),
    ("worker", "stop"),
)
KINDS = len(_BLOWS)


def schedule(seed: int, count: int) -> list[Strike]:
    """Draw `count` blows; each kind comes once before any comes again."""
    draw = random.Random(seed)
    kinds: list[tuple[str, str]] = []
    while len(kinds) < count:
        kinds += draw.sample(_BLOWS, KINDS)
    return [
        Strike(victim, manner, draw.uniform(0.0, 1.0), draw.uniform(1.0, _LONGEST_CUT_SECONDS))
        for victim, manner in kinds[:count]
    ]


def strike(mesh: RunningMesh, blow: Strike) -> None:
    """Deal one blow; a process that died meanwhile was struck already."""
    if blow.victim == "child":
        with contextlib.suppress(ProcessLookupError):
            os.kill(mesh.worker_child(), signal.SIGKILL)
        return
    with contextlib.suppress(ProcessLookupError):
        if blow.manner == "wipe":
            mesh.wipe_nats()
            return
        pid = mesh.pid(blow.victim)
        if blow.manner == "stop":
            os.kill(pid, signal.SIGSTOP)
            try:
                time.sleep(blow.seconds)
            finally:
                os.kill(pid, signal.SIGCONT)
        elif blow.manner == "restart":
            os.kill(pid, signal.SIGINT)
        else:
            os.kill(pid, signal.SIGKILL)


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


@dataclass
class Outcome:
    """What a run counted.

    Attributes:
        seed: Draws the blows again.
        accepted: Creates that were answered; workflows' tasks not among them.
        workflows: Workflows that were accepted.
        strikes: Blows by their kind.
        seconds: From the first create to the last check.
        lost: Accepted and not there, not COMPLETED, without its object, or without the webhook of its end.
        doubled: Made twice, completed twice, or two that share an object.
        orphans: Tasks and attempts without an end, stories that contradict themselves, objects and deliveries that
            belong to nothing.
        repeated: Webhooks that came again under the same id, which is allowed.
    """

    seed: int
    accepted: int = 0
    workflows: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    attempts: Counter[str] = field(default_factory=Counter)
    repeated: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is amiss."""
        return not (self.lost or self.doubled or self.orphans)

    def table(self) -> str:
        """Show it, the seed last."""
        rows = [
            ("tasks accepted", self.accepted),
            ("workflows accepted", self.workflows),
            *((f"struck: {name}", count) for name, count in sorted(self.strikes.items())),
            *((f"attempts {name}", count) for name, count in sorted(self.attempts.items())),
            ("webhooks repeated", self.repeated),
            ("lost", len(self.lost)),
            ("doubled", len(self.doubled)),
            ("orphans", len(self.orphans)),
            ("seconds", round(self.seconds)),
            ("seed", self.seed),
        ]
        lines = [f"| {name:28s} | {value:>10} |" for name, value in rows]
        wrong = [f"{kind}: {each}" for kind in ("lost", "doubled", "orphans") for each in getattr(self, kind)[:10]]
        return "\n".join([f"| {'chaos':28s} | {'':>10} |", f"|{'-' * 30}|{'-' * 11}:|", *lines, *wrong])


def run(mesh: RunningMesh, receiver: Receiver, hook: str, *, tasks: int, strikes: int, seed: int) -> Outcome:
    """Create tasks and workflows while the blows fall, wait for the end of all, and count.

    Args:
        mesh: A mesh of its own.
        receiver: Who takes the webhooks.
        hook: Its address.
        tasks: How many tasks are created, of all tenants together; beside them a workflow of two steps for each 25.
        strikes: How many blows.
        seed: Draws them.
    """
    outcome = Outcome(seed)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        clients = {tenant: stack.enter_context(mesh.http(tenant)) for tenant in TENANTS}
        made = _create_under_blows(mesh, clients, hook, tasks, schedule(seed, strikes), outcome)
        _wait_settled(mesh, tasks / 10 + 120)
        for tenant, client in clients.items():
            _count_tenant(mesh, client, tenant, made[tenant], receiver, outcome)
    _count_rows(mesh, outcome)
    outcome.repeated = receiver.repeated
    outcome.seconds = time.monotonic() - began
    return outcome


@dataclass(slots=True)
class _Made:
    """What one tenant was promised: identifiers of answered creates."""

    tasks: list[str] = field(default_factory=list)
    workflows: list[str] = field(default_factory=list)


def _create_under_blows(
    mesh: RunningMesh,
    clients: dict[str, httpx.Client],
    hook: str,
    tasks: int,
    blows: Sequence[Strike],
    outcome: Outcome,
) -> dict[str, _Made]:
    """Create in as many parts as there are blows; each falls while its part is being created."""
    made = {tenant: _Made() for tenant in clients}
    draw = random.Random(outcome.seed)

    def create(number: int, key: str) -> None:
        tenant = TENANTS[number % len(TENANTS)]
        task = mesh.create(clients[tenant], key, **_STEPS, webhook_url=hook)
        made[tenant].tasks.append(task["id"])
        if number % 25 == 0:
            flow = post_until_answered(clients[tenant], "/api/v1/workflows/", _workflow(), f"{key}-flow")
            made[tenant].workflows.append(flow["id"])

    with ThreadPoolExecutor(_CLIENTS) as pool:
        for number, blow in enumerate(blows):
            part = range(tasks * number // len(blows), tasks * (number + 1) // len(blows))
            creating = [
                pool.submit(create, each, str(uuid.UUID(int=draw.getrandbits(128), version=4))) for each in part
            ]
            _wait_half(creating)
            time.sleep(blow.pause_seconds)
            strike(mesh, blow)
            outcome.strikes[blow.name] += 1
            for each in creating:
                each.result()
    outcome.accepted = sum(len(each.tasks) for each in made.values())
    outcome.workflows = sum(len(each.workflows) for each in made.values())
    return made


def _wait_half(creating: Sequence[Future[None]]) -> None:
    until(
        lambda: sum(each.done() for each in creating) * 2 >= len(creating),
        "half of a part is created",
        180,
        pause_seconds=0.02,
    )


def _workflow() -> dict[str, Any]:
    steps = [
        {"id": name, "task_type": "NOOP", "depends_on": needs, "config": _STEPS}
        for name, needs in (("first", []), ("second", ["first"]))
    ]
    return {"name": "chaos", "origin_instance": "e2e", "steps": steps}


_UNSETTLED = """
    SELECT (SELECT count(*) FROM tasks.tasks WHERE status IN ('PENDING', 'EXECUTING'))
         + (SELECT count(*) FROM tasks.webhook_deliveries WHERE status = 'PENDING')
         + (SELECT count(*) FROM tasks.object_sweeps)
         + (SELECT count(*) FROM workflows.workflows WHERE status NOT IN ('COMPLETED', 'FAILED', 'CANCELLED'))
"""


def _wait_settled(mesh: RunningMesh, seconds: float) -> None:
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


def _count_tenant(
    mesh: RunningMesh, client: httpx.Client, tenant: str, made: _Made, receiver: Receiver, outcome: Outcome
) -> None:
    listed = until(lambda: mesh.tasks(client), "the tasks are listed")
    promised = list(made.tasks)
    for ident in made.workflows:
        flow = client.get(f"/api/v1/workflows/{ident}").json()
        promised += [step["task_id"] or f"a step of workflow {ident}" for step in flow["steps"]]
        if flow["status"] != "COMPLETED":
            outcome.lost.append(f"workflow {ident} is {flow['status']}")
    found = Counter(task["id"] for task in listed)
    outcome.lost += sorted((Counter(promised) - found).elements())
    # A second task for one create or one step is a task that nobody was promised.
    outcome.doubled += sorted((found - Counter(promised)).elements())

    objects = mesh.objects(tenant)
    results = Counter(task["result_path"] for task in listed if task["status"] == "COMPLETED")
    outcome.lost += [f"object {path}" for path in results if path not in objects]
    outcome.doubled += [f"object {path}" for path, times in results.items() if times > 1]
    outcome.orphans += [f"object {path}" for path in objects - set(results)]
    with ThreadPoolExecutor(4) as pool:
        for task, attempts in zip(
            listed, pool.map(lambda task: mesh.attempts(client, task["id"]), listed), strict=True
        ):
            _count_task(task, attempts, outcome)
    # A step's task has no webhook of its own.
    told = {ident: receiver.last_state(ident) for ident in made.tasks}
    outcome.lost += [
        f"webhook of {ident}: the last told {state}" for ident, state in told.items() if state != "COMPLETED"
    ]


def _count_task(task: dict[str, Any], attempts: list[dict[str, Any]], outcome: Outcome) -> None:
    ident = task["id"]
    outcome.attempts.update(each["outcome"] or "without an end" for each in attempts)
    if task["status"] != "COMPLETED":
        where = outcome.lost if task["status"] in {"FAILED", "CANCELLED"} else outcome.orphans
        where.append(f"task {ident} is {task['status']}: {task['errors'][-1:]}")
        return
    if sum(each["outcome"] == "COMPLETED" for each in attempts) > 1:
        outcome.doubled.append(f"task {ident} completed twice")
    elif fault := story_fault(task, attempts):
        outcome.orphans.append(f"task {ident}: {fault}")


def _count_rows(mesh: RunningMesh, outcome: Outcome) -> None:
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
    outcome.orphans += [f"attempt {attempt} of {task} has no end" for task, attempt in open_ones]
    outcome.orphans += [f"delivery {ident} of no task" for (ident,) in unowned]
    outcome.lost += [f"webhook {ident} is {status}: {error}" for ident, status, error in undelivered]


@contextlib.contextmanager
def receiver_and_settings() -> Iterator[tuple[Receiver, str, dict[str, str]]]:
    """Run a receiver; yield it, its address, and the settings of a mesh that may reach it."""
    [port] = free_ports(1)
    with receiving(port) as receiver:
        allowed = {"ATELIER_FETCH_ALLOW_PRIVATE": f"127.0.0.1:{port}"}
        yield receiver, f"http://127.0.0.1:{port}/hook", {**CHAOS_ENVIRONMENT, **allowed}


def main() -> int:
    """Run the long form on a mesh of its own; 1 if anything is lost, doubled or orphaned."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e.chaos", description=__doc__)
    parser.add_argument("--tasks", type=int, default=LONG_TASKS)
    parser.add_argument("--strikes", type=int, default=0, help="how many blows; one for each 200 tasks if not given")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    given = parser.parse_args()
    print(f"seed {given.seed}", flush=True)
    with contextlib.ExitStack() as stack:
        path = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="atelier-chaos-")))
        path.chmod(0o711)
        receiver, hook, environment = stack.enter_context(receiver_and_settings())
        mesh = RunningMesh(path / "mesh", {**NOOP_ENVIRONMENT, **environment})
        mesh.path.mkdir(mode=0o711)
        stack.callback(mesh.down)
        mesh.up()
        strikes = given.strikes or max(KINDS, given.tasks // 200)
        outcome = run(mesh, receiver, hook, tasks=given.tasks, strikes=strikes, seed=given.seed)
    print(outcome.table())
    return 0 if outcome.clean else 1


if __name__ == "__main__":
    sys.exit(main())
