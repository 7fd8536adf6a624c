from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_FAL_STANDARD,
    PROVIDER_TYPE_LOCAL,
    TASK_TYPE_GENERATION,
    TASK_TYPE_NOOP,
)
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TRAINING, OpenSessionRequest, ServedPair

from services.tasks.scheduling.servicer import served_pairs


def test_an_older_worker_means_each_type_with_each_provider() -> None:
    request = OpenSessionRequest(
        task_types=[TASK_TYPE_NOOP, TASK_TYPE_GENERATION],
        provider_types=[PROVIDER_TYPE_LOCAL, PROVIDER_TYPE_FAL_STANDARD],
    )
    assert served_pairs(request) == ["NOOP/LOCAL", "NOOP/FAL_STANDARD", "GENERATION/LOCAL", "GENERATION/FAL_STANDARD"]
    assert served_pairs(OpenSessionRequest(task_types=[TASK_TYPE_NOOP])) == ["NOOP/LOCAL"]


def test_pairs_are_taken_as_they_are_and_default_to_local_tasks() -> None:
    request = OpenSessionRequest(
        task_types=[TASK_TYPE_NOOP],
        pairs=[
            ServedPair(task_type=TASK_TYPE_GENERATION),
            ServedPair(task_type=TASK_TYPE_NOOP, provider_type=PROVIDER_TYPE_FAL_STANDARD),
            ServedPair(job_kind=JOB_KIND_TRAINING),
        ],
    )
    assert served_pairs(request) == ["GENERATION/LOCAL", "NOOP/FAL_STANDARD", "TRAINING/LOCAL"]
