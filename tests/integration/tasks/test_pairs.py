"""Which (task type or job kind, provider) pairs a session is given work of."""

import pytest
from atelier.tasks.v1 import enums_pb2, worker_service_pb2
from atelier.tasks.v1.worker_service_pb2 import ServedPair

from meshkit.errors import ErrorKind, MeshError
from services.tasks.domain import JobKind, lane_of
from tests.integration.tasks.conftest import Mesh, StartMesh

LOCAL = enums_pb2.PROVIDER_TYPE_LOCAL
FAL = enums_pb2.PROVIDER_TYPE_FAL_STANDARD
GENERATION = enums_pb2.TASK_TYPE_GENERATION
REFINE = enums_pb2.TASK_TYPE_REFINE
TRAINING = worker_service_pb2.JOB_KIND_TRAINING

EVERY_LANE = [
    *(f"{task_type}/{provider}" for task_type in ("GENERATION", "REFINE") for provider in ("LOCAL", "FAL_STANDARD")),
    *(f"TRAINING/{provider}" for provider in ("LOCAL", "FAL_STANDARD")),
]


async def waiting(mesh: Mesh, lanes: list[str] = EVERY_LANE) -> dict[str, str]:
    """One waiting job in each lane, by its id. No type of them has to be served: rows are written by hand."""
    jobs = {(await mesh.create()).id: lane for lane in lanes}
    for job, lane in jobs.items():
        kind = "TRAINING" if lane.startswith("TRAINING/") else "TASK"
        await mesh.execute("UPDATE tasks SET lane = %s, kind = %s WHERE id = %s", lane, kind, job)
    await mesh.execute("DELETE FROM queue_lanes")
    await mesh.execute(
        "INSERT INTO queue_lanes SELECT queue_name, tenant, lane, 0, count(*) FROM tasks GROUP BY 1, 2, 3"
    )
    return jobs


async def test_a_worker_is_given_its_pairs_and_no_other_combination_of_them(mesh: Mesh) -> None:
    jobs = await waiting(mesh)
    worker = await mesh.worker(
        pairs=(
            ServedPair(task_type=GENERATION, provider_type=LOCAL),
            ServedPair(task_type=REFINE, provider_type=FAL),
        )
    )
    leases = await worker.lease(10)
    assert {jobs[lease.job_id] for lease in leases} == {"GENERATION/LOCAL", "REFINE/FAL_STANDARD"}
    assert await worker.lease(10, wait=0.2) == []


async def test_a_worker_without_pairs_is_given_each_type_by_each_provider(mesh: Mesh) -> None:
    jobs = await waiting(mesh)
    worker = await mesh.worker(types=(GENERATION, REFINE), providers=(LOCAL, FAL))
    leases = await worker.lease(10)
    assert {jobs[lease.job_id] for lease in leases} == set(EVERY_LANE[:4])


async def test_pairs_count_where_types_are_named_too(mesh: Mesh) -> None:
    jobs = await waiting(mesh)
    worker = await mesh.worker(types=(GENERATION, REFINE), pairs=(ServedPair(task_type=REFINE),))
    assert {jobs[lease.job_id] for lease in await worker.lease(10)} == {"REFINE/LOCAL"}


async def test_training_jobs_are_leased_beside_tasks_by_the_session_that_names_them(mesh: Mesh) -> None:
    jobs = await waiting(mesh)
    tasks_only = await mesh.worker(pairs=(ServedPair(task_type=GENERATION),))
    assert {jobs[lease.job_id] for lease in await tasks_only.lease(10)} == {"GENERATION/LOCAL"}
    both = await mesh.worker(name="w/1", pairs=(ServedPair(task_type=REFINE), ServedPair(job_kind=TRAINING)))
    leases = await both.lease(10)
    assert {jobs[lease.job_id]: lease.kind for lease in leases} == {
        "REFINE/LOCAL": worker_service_pb2.JOB_KIND_TASK,
        "TRAINING/LOCAL": TRAINING,
    }


async def test_pairs_are_read_by_a_replica_that_did_not_open_the_session(start_mesh: StartMesh) -> None:
    mesh, other = await start_mesh(), await start_mesh()
    jobs = await waiting(mesh)
    worker = await mesh.worker(pairs=(ServedPair(task_type=REFINE, provider_type=FAL),))
    # What a replica of the release before writes in its place.
    older = await mesh.worker(name="w/1", pairs=(ServedPair(job_kind=TRAINING),))
    await mesh.execute(
        "UPDATE sessions SET pairs = NULL, task_types = '{GENERATION}', provider_types = '{LOCAL,FAL_STANDARD}' "
        "WHERE id = %s",
        older.session,
    )
    worker.stub = older.stub = other.workers()
    assert {jobs[lease.job_id] for lease in await worker.lease(10)} == {"REFINE/FAL_STANDARD"}
    assert {jobs[lease.job_id] for lease in await older.lease(10)} == {"GENERATION/LOCAL", "GENERATION/FAL_STANDARD"}


@pytest.mark.parametrize(
    "pair", [ServedPair(), ServedPair(provider_type=LOCAL), ServedPair(task_type=GENERATION, job_kind=TRAINING)]
)
async def test_a_pair_names_a_type_or_training_and_not_both(mesh: Mesh, pair: ServedPair) -> None:
    with pytest.raises(MeshError) as refused:
        await mesh.worker(pairs=(pair,))
    assert refused.value.kind is ErrorKind.INVALID


async def test_a_worker_that_runs_nothing_is_refused(mesh: Mesh) -> None:
    with pytest.raises(MeshError) as refused:
        await mesh.worker(types=())
    assert refused.value.kind is ErrorKind.INVALID


def test_the_lane_of_training_is_no_types() -> None:
    assert lane_of("", "LOCAL", JobKind.TRAINING) == "TRAINING/LOCAL"
    assert "TASK_TYPE_TRAINING" not in enums_pb2.TaskType.DESCRIPTOR.values_by_name
