"""Callers that balance over all gateways of a mesh and repeat only what may be repeated."""

import contextlib
import datetime as dt
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.e2e.harness import MeshView, noop, until
from tests.e2e.ledger import Made
from tests.e2e.replicas import Fleet

_STEPS = {"steps": 2, "step_ms": 10, "result_bytes": 64}
_GIVE_UP_SECONDS = 60.0


@dataclass
class Tally:
    """What callers saw.

    Attributes:
        requests: Requests that were answered in the end.
        retries: What was repeated, by its cause.
        failures: Answers that no caller may see.
        slowest: Longest time from a request to its answer, retries included.
    """

    requests: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    slowest: float = 0.0

    @property
    def line(self) -> str:
        """Tell it in one line."""
        repeated = ", ".join(f"{cause} {times}" for cause, times in sorted(self.retries.items())) or "none"
        failed = len(self.failures)
        return f"{self.requests} requests, repeated: {repeated}; failed: {failed}; slowest {self.slowest:.1f} s"


class Caller:
    """Calls through all gateways in turn, and repeats what may be repeated.

    That is a connection that is refused, a 503 with `Retry-After`, and a connection that ends without an answer, where
    the request carries a key or only reads.
    """

    def __init__(self, gateways: Sequence[str], token: str, tally: Tally, first: int = 0) -> None:
        headers = {"authorization": f"Bearer {token}"}
        self._clients = [httpx.Client(base_url=url, headers=headers, timeout=40) for url in gateways]
        self._next = first
        self._tally = tally

    def close(self) -> None:
        for client in self._clients:
            client.close()

    def send(self, method: str, path: str, key: str = "", body: Any = None) -> Any:
        """Return the answer's JSON; None where there is none that a caller may count on."""
        began = time.monotonic()
        headers = {"idempotency-key": key} if key else {}
        while time.monotonic() - began < _GIVE_UP_SECONDS:
            client = self._clients[self._next % len(self._clients)]
            self._next += 1
            pause = 0.02
            try:
                answer = client.request(method, path, json=body, headers=headers)
            except httpx.ConnectError:
                cause = "refused"
            except httpx.TransportError as error:
                assert key or method == "GET"
                cause = f"ended without an answer ({type(error).__name__})"
            else:
                if answer.status_code == 200:
                    self._tally.requests += 1
                    self._tally.slowest = max(self._tally.slowest, time.monotonic() - began)
                    return answer.json()
                if answer.status_code != 503 or "retry-after" not in answer.headers:
                    self._tally.failures.append(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
                    return None
                cause, pause = "503", min(1.0, float(answer.headers["retry-after"]))
            self._tally.retries[cause] += 1
            time.sleep(pause)
        self._tally.failures.append(f"{method} {path}: no answer within {_GIVE_UP_SECONDS:.0f} s")
        return None


@dataclass
class Load:
    """Callers that create tasks and workflows, and read them back, until they are told to stop.

    Attributes:
        fleet: The mesh.
        tenants: Each has a caller of its own, all at once.
        pause_seconds: Between two creates of one caller.
        gateways: Which are called; all where empty.
    """

    fleet: Fleet
    tenants: Sequence[str]
    pause_seconds: float = 0.05
    gateways: Sequence[str] = ()
    tally: Tally = field(default_factory=Tally)
    made: dict[str, Made] = field(default_factory=dict)
    _done: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.made = {tenant: Made() for tenant in self.tenants}

    def answered(self, tenant: str) -> int:
        """Count a tenant's creates that were answered so far."""
        return len(self.made[tenant].tasks) + len(self.made[tenant].workflows)

    @contextlib.contextmanager
    def running(self) -> Iterator["Load"]:
        """Run it within the block."""
        with ThreadPoolExecutor(len(self.tenants)) as pool:
            callers = [pool.submit(self._call, tenant, number) for number, tenant in enumerate(self.tenants)]
            try:
                yield self
            finally:
                self._done.set()
            for each in callers:
                each.result()

    def _call(self, tenant: str, number: int) -> None:
        caller = Caller(self.gateways or self.fleet.gateways, self.fleet.token(tenant), self.tally, number)
        promised, turn = self.made[tenant], 0
        try:
            while not self._done.wait(self.pause_seconds):
                turn += 1
                if turn % 8 == 0:
                    flow = caller.send("POST", "/api/v1/workflows/", f"{tenant}-flow-{turn}", workflow())
                    promised.workflows += [flow["id"]] if flow else []
                else:
                    task = caller.send("POST", "/api/v1/tasks/", f"{tenant}-{turn}", noop(**_STEPS))
                    promised.tasks += [task["id"]] if task else []
                if promised.tasks and turn % 4 == 0:
                    caller.send("GET", f"/api/v1/tasks/{promised.tasks[turn % len(promised.tasks)]}")
        finally:
            caller.close()


def goes_on(load: Load, creates: int = 12) -> None:
    """Wait until every caller has had so many more creates answered."""
    before = {tenant: load.answered(tenant) for tenant in load.tenants}
    until(
        lambda: all(load.answered(tenant) >= before[tenant] + creates for tenant in load.tenants),
        f"each caller has {creates} more creates answered",
        120,
    )


_NEEDS: Mapping[str, Sequence[str]] = {
    "first": (),
    "left": ("first",),
    "right": ("first",),
    "last": ("left", "right"),
}


def workflow() -> dict[str, Any]:
    """The body of a workflow of four steps, two of them side by side."""
    steps = [{"id": name, "task_type": "NOOP", "depends_on": needs, "config": _STEPS} for name, needs in _NEEDS.items()]
    return {"name": "replicas", "origin_instance": "e2e", "steps": steps}


def order_faults(fleet: MeshView, made: Mapping[str, Made]) -> list[str]:
    """Name steps of workflows that began before what they depend on had ended."""
    wrong = []
    for tenant, promised in made.items():
        with fleet.http(tenant) as client:
            for ident in promised.workflows:
                found = client.get(f"/api/v1/workflows/{ident}").json()["steps"]
                steps = {step["step_id"]: client.get(f"/api/v1/tasks/{step['task_id']}").json() for step in found}
                wrong += [
                    f"{ident}: {name} began before {need} had ended"
                    for name, needs in _NEEDS.items()
                    for need in needs
                    if _time(steps[name]["started_at"]) < _time(steps[need]["completed_at"])
                ]
    return wrong


def _time(text: str) -> dt.datetime:
    return dt.datetime.fromisoformat(text)
