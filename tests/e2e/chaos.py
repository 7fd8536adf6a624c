"""Kill every kind of process at random under load, then count what was lost, doubled, orphaned or miscounted.

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
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from atelier_cli.embedded.process import free_ports
from tests.e2e.harness import NOOP_ENVIRONMENT, RunningMesh, post_until_answered, until
from tests.e2e.ledger import Faults, Made, Receiver, count, receiving, wait_settled

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
class Outcome:
    """What a run counted.

    Attributes:
        seed: Draws the blows again.
        accepted: Creates that were answered; workflows' tasks not among them.
        workflows: Workflows that were accepted.
        strikes: Blows by their kind.
        seconds: From the first create to the last check.
        faults: What is amiss.
        repeated: Webhooks that came again under the same id, which is allowed.
    """

    seed: int
    accepted: int = 0
    workflows: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    faults: Faults = field(default_factory=Faults)
    repeated: int = 0

    @property
    def clean(self) -> bool:
        """Whether nothing is amiss."""
        return self.faults.clean

    def table(self) -> str:
        """Show it, the seed last."""
        rows = [
            ("tasks accepted", self.accepted),
            ("workflows accepted", self.workflows),
            *((f"struck: {name}", count) for name, count in sorted(self.strikes.items())),
            *((f"attempts {name}", count) for name, count in sorted(self.faults.attempts.items())),
            ("webhooks repeated", self.repeated),
            ("lost", len(self.faults.lost)),
            ("doubled", len(self.faults.doubled)),
            ("orphans", len(self.faults.orphans)),
            ("miscounted", len(self.faults.miscounted)),
            ("seconds", round(self.seconds)),
            ("seed", self.seed),
        ]
        lines = [f"| {name:28s} | {value:>10} |" for name, value in rows]
        return "\n".join([f"| {'chaos':28s} | {'':>10} |", f"|{'-' * 30}|{'-' * 11}:|", *lines, *self.faults.worst])


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
    wait_settled(mesh, tasks / 10 + 120)
    outcome.faults = count(mesh, made, receiver)
    outcome.repeated = receiver.repeated
    outcome.seconds = time.monotonic() - began
    return outcome


def _create_under_blows(
    mesh: RunningMesh,
    clients: dict[str, httpx.Client],
    hook: str,
    tasks: int,
    blows: Sequence[Strike],
    outcome: Outcome,
) -> dict[str, Made]:
    """Create in as many parts as there are blows; each falls while its part is being created."""
    made = {tenant: Made() for tenant in clients}
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
