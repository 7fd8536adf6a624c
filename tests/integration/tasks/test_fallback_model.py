"""Random bad days of two providers through the real store: the outcome is that of a model of a few lines.

All tasks of a case go through their scripts side by side: in each round one worker leases whatever waits, ends each
attempt as its script says, and is lost with the rest.
"""

import asyncio
import random
from dataclasses import dataclass, field
from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, worker_service_pb2
from atelier.tasks.v1.generation_pb2 import CreateGenerationTask
from google.protobuf.duration_pb2 import Duration

from services.tasks.domain import MAX_FREE_RELEASES, ErrorCategory
from tests.integration.tasks.conftest import Mesh, StartMesh, Worker, age_session, ref
from tests.integration.tasks.test_service_requests import ACCEPTED, SENDING, note, request

GENERATION = enums_pb2.TASK_TYPE_GENERATION
NAMES = ("LOCAL", "FAL_STANDARD", "VERTEX")
RETRIES, FALLBACK_SECONDS = 2, 60
LONG = 40  # more attempts than any script can take


@dataclass(frozen=True)
class Ending:
    """How one attempt ends.

    Attributes:
        kind: `done`, `fail`, `release`, `lose` (its worker dies).
        category: Why it failed.
        retryable: Whether its worker says that another attempt could succeed.
        retry_after: Seconds that the provider asks for.
        noted: What it noted of a request to its provider before.
    """

    kind: str
    category: str = "RESOURCE"
    retryable: bool = True
    retry_after: int | None = None
    noted: str | None = None


@dataclass
class Case:
    primary: str
    fallback: str | None
    script: list[Ending]
    task_id: str = ""
    seen: list[str] = field(default_factory=list)

    @property
    def attempt(self) -> Ending:
        return self.script[len(self.seen) - 1]


def drawn(dice: random.Random) -> Case:
    primary = dice.choice(NAMES)
    fallback = dice.choice([None, *(name for name in NAMES if name != primary)])
    weights = dice.choice([(1, 8, 2, 3), (1, 1, 9, 9), (1, 9, 0, 0)])
    kinds = dice.choices(("done", "fail", "release", "lose"), weights, k=LONG)
    return Case(primary, fallback, [ending(dice, kind) for kind in kinds])


def ending(dice: random.Random, kind: str) -> Ending:
    if kind == "fail":
        return Ending(
            "fail",
            dice.choice([name for name in ErrorCategory if name != "CANCELLED"]),
            dice.random() < 0.8,
            dice.choice([None, None, 5, FALLBACK_SECONDS + 1, 100_000]),
        )
    return Ending(kind, noted=dice.choice([None, "SENDING", "ACCEPTED"]) if kind != "done" else None)


def expected(case: Case) -> tuple[list[str], str, str | None]:
    """Return the providers of the attempts in order, the last state and why it is so."""
    providers, current, second = [], case.primary, case.fallback
    spent = free = 0
    accepted = False
    for each in case.script:
        providers.append(current)
        accepted = accepted or (each.noted == "ACCEPTED" and current != "LOCAL")
        if each.kind == "done":
            return providers, "COMPLETED", None
        if free < MAX_FREE_RELEASES and (each.kind == "release" or (each.kind == "lose" and accepted)):
            free += 1
            continue
        again = spent < RETRIES and (
            each.kind != "fail" or (each.retryable and each.category not in ("VALIDATION", "CONTENT_POLICY"))
        )
        waits = each.kind == "fail" and (each.retry_after or 0) > FALLBACK_SECONDS
        if again and not (second and waits and each.category != "VALIDATION"):
            spent += 1
        elif second and each.category != "VALIDATION":
            current, second, spent, free, accepted = second, None, 0, 0, False
        else:
            return providers, "FAILED", each.category
    raise AssertionError("a script is longer than any task")


async def worker_of(mesh: Mesh, name: str) -> Worker:
    pairs = tuple(
        worker_service_pb2.ServedPair(
            task_type=GENERATION,
            provider_type=enums_pb2.ProviderType.Value(f"PROVIDER_TYPE_{provider}"),
            job_kind=worker_service_pb2.JOB_KIND_TASK,
        )
        for provider in NAMES
    )
    return await mesh.worker(queues=("inference", "fal", "vertex"), pairs=pairs, name=name)


async def create(mesh: Mesh, case: Case) -> None:
    spec = task_pb2.CreateTask(origin_instance="tests", generation=CreateGenerationTask(prompt="a hat"))
    for provider, kind, settings in (
        (case.primary, "provider_type", "provider_config"),
        (case.fallback, "fallback_provider_type", "fallback_provider_config"),
    ):
        if provider is not None:
            setattr(spec, kind, enums_pb2.ProviderType.Value(f"PROVIDER_TYPE_{provider}"))
        if provider == "FAL_STANDARD":
            getattr(spec, settings).fal_standard.fal_app_id = "fal-ai/flux/dev"
    case.task_id = (await mesh.create(spec, stub=mesh.tasks())).id


async def end(worker: Worker, lease: worker_service_pb2.Lease, case: Case) -> None:
    how = case.attempt
    provider = NAMES[[1, 2, 8].index(lease.task.provider_type)]
    case.seen[-1] = provider
    if how.noted is not None and provider != "LOCAL":
        what = request(SENDING if how.noted == "SENDING" else ACCEPTED, service_task_id=f"req-{lease.attempt}")
        what.provider_type = lease.task.provider_type
        await note(worker, lease, what)
    if how.kind == "done":
        await worker.complete_many(worker_service_pb2.Completion(ref=ref(lease)))
    elif how.kind == "release":
        await worker.release(lease)
    elif how.kind == "fail":
        wait = None if how.retry_after is None else Duration(seconds=how.retry_after)
        category: Any = enums_pb2.ErrorCategory.Value(f"ERROR_CATEGORY_{how.category}")
        await worker.stub.Fail(
            worker_service_pb2.FailRequest(
                session_id=worker.session,
                ref=ref(lease),
                message="broken",
                category=category,
                retryable=how.retryable,
                retry_after=wait,
            )
        )


async def play(mesh: Mesh, cases: dict[str, Case]) -> None:
    """Have every attempt of every task end as its script says, until all tasks have ended."""
    for turn in range(2 * LONG):
        await mesh.execute("UPDATE tasks SET not_before = now() WHERE not_before IS NOT NULL")
        await mesh.running.maintenance.promote()
        [[waiting]] = await mesh.rows("SELECT count(*) FROM tasks WHERE status = 'PENDING'")
        if not waiting:
            return
        worker = await worker_of(mesh, f"w/{turn}")
        leases: list[worker_service_pb2.Lease] = []
        while len(leases) < waiting:
            leases += await worker.lease(min(256, waiting - len(leases)))
        for lease in leases:
            cases[lease.job_id].seen.append("")
        for start in range(0, len(leases), 32):
            await asyncio.gather(*(end(worker, lease, cases[lease.job_id]) for lease in leases[start : start + 32]))
        lost = [lease for lease in leases if cases[lease.job_id].attempt.kind == "lose"]
        await worker.heartbeat(*lost)
        await age_session(mesh, worker)
        await mesh.running.maintenance.expire()
    raise AssertionError("tasks go on for ever")


@pytest.mark.parametrize(
    ("seed", "size"),
    [(12, 60), *(pytest.param(seed, 100, marks=pytest.mark.long) for seed in range(4))],
)
async def test_whatever_two_providers_do_the_task_ends_as_in_the_model(
    start_mesh: StartMesh, seed: int, size: int
) -> None:
    policy = {"max_retries": RETRIES, "retry_base_seconds": 0.0, "fallback_seconds": FALLBACK_SECONDS}
    mesh = await start_mesh(served_providers=NAMES, **policy)
    dice = random.Random(seed)
    cases = [drawn(dice) for _ in range(size)]
    for case in cases:
        await create(mesh, case)
    await play(mesh, {case.task_id: case for case in cases})
    query = "SELECT id::text, status, error_category, fallback, provider_type FROM tasks"
    ends = {row[0]: row[1:] for row in await mesh.rows(query)}
    for case in cases:
        providers, state, why = expected(case)
        status, category, fallback, provider = ends[case.task_id]
        assert (case.seen, status, category) == (providers, state, why), case
        assert provider == providers[-1]
        # Only once, and never back.
        assert fallback == (None if case.fallback is None else "TAKEN" if case.fallback in providers else "AVAILABLE")
    # The dice have shown all of it.
    assert {(row[0], row[2]) for row in ends.values()} >= {
        (state, fallback) for state in ("COMPLETED", "FAILED") for fallback in (None, "TAKEN")
    }
    # Nothing waits any more, and no request of a task that failed is left for anybody.
    assert await mesh.rows("SELECT * FROM queue_lanes WHERE pending <> 0") == []
    left = "SELECT r.state FROM service_requests r JOIN tasks t ON t.id = r.task_id WHERE r.ended_at IS NULL"
    assert await mesh.rows(f"{left} AND t.status = 'FAILED' AND t.provider_type <> 'LOCAL'") == []
