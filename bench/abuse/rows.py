"""What a row of the table is, and what it works with."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import httpx

from bench.abuse.other import OtherTenant
from bench.abuse.peers import Peers
from tests.e2e.harness import RunningMesh

GREEDY = "greedy"


class NotTriedError(Exception):
    """A row cannot be tried on this machine; the text says why."""


@dataclass
class Abuse:
    """What a row works with.

    Attributes:
        mesh: The mesh.
        peers: Servers that the greedy tenant names.
        other: The other tenant, who waits meanwhile.
        answers: What the mesh answered, counted.
        found: What else the row found out.
        wrong: What came out wrong beside memory and waits.
    """

    mesh: RunningMesh
    peers: Peers
    other: OtherTenant
    answers: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Take a token as the greedy tenant."""
        self.headers = {
            "Authorization": f"Bearer {self.mesh.token(GREEDY)}",
            "Content-Type": "application/json",
        }

    @property
    def url(self) -> str:
        """The gateway."""
        return self.mesh.url

    @property
    def address(self) -> tuple[str, int]:
        """The gateway's socket address."""
        return "127.0.0.1", self.mesh.port

    @property
    def grpc(self) -> str:
        """Address of the tasks service."""
        return f"127.0.0.1:{self.mesh.record.ports['tasks']}"

    def create(self, body: dict[str, Any]) -> str | None:
        """Create a task as the greedy tenant; return its id if it is accepted."""
        return self.post(json.dumps({"origin_instance": "bench", **body}))

    def post(self, body: str) -> str | None:
        """Post a body as the greedy tenant."""
        answer = self.note(
            lambda: httpx.post(f"{self.url}/api/v1/tasks/", content=body, headers=self.headers, timeout=60)
        )
        return str(answer.json()["id"]) if answer is not None and answer.status_code == 200 else None

    def note(self, send: Callable[[], httpx.Response]) -> httpx.Response | None:
        """Send a request and count its answer."""
        try:
            answer = send()
        except httpx.HTTPError as error:
            self.answers[type(error).__name__] += 1
            return None
        self.answers[str(answer.status_code)] += 1
        return answer

    def together(self, times: int, act: Callable[[int], object], at_once: int = 8) -> None:
        """Do something so often, some at once."""
        with ThreadPoolExecutor(at_once) as pool:
            list(pool.map(act, range(times)))


class Act(Protocol):
    """The misuse of a row."""

    def __call__(self, abuse: Abuse) -> None:
        """Do it, and return when the load is over."""
        ...


Door = Callable[[Abuse], AbstractContextManager[str]]


@dataclass(frozen=True, slots=True)
class MisuseRow:
    """One row of the table.

    Attributes:
        name: What is done.
        act: Does it.
        probe: What the other tenant waits for: `done`, `webhook`, `stream` or `workflow`.
        longest: The bound of the other tenant's longest wait, in seconds, where calls are refused for a while; the
            tenant repeats them. None where nothing may be refused and the median wait is judged.
        door: Opens the gateway that the other tenant uses; None for the mesh's own.
        small_disks: Whether the mesh lies on small disks of its own.
    """

    name: str
    act: Act
    probe: str
    longest: float | None
    door: Door | None
    small_disks: bool


ROWS: list[MisuseRow] = []


def row(
    name: str,
    probe: str = "done",
    *,
    longest: float | None = None,
    door: Door | None = None,
    small_disks: bool = False,
) -> Callable[[Act], Act]:
    """Register a row; the arguments are the attributes of `MisuseRow`."""

    def add(act: Act) -> Act:
        ROWS.append(MisuseRow(name, act, probe, longest, door, small_disks))
        return act

    return add
