from atelier.tasks.v1.background_removal_pb2 import CreateBackgroundRemovalTask
from atelier.tasks.v1.enums_pb2 import (
    PROVIDER_TYPE_FAL_STANDARD,
    PROVIDER_TYPE_LOCAL,
    PROVIDER_TYPE_VERTEX,
    TASK_TYPE_BACKGROUND_REMOVE,
    TASK_TYPE_NOOP,
    TASK_TYPE_UNSPECIFIED,
)
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TASK, JOB_KIND_TRAINING, ServedPair

from meshkit.worker.pairs import TRAINING, Pair, pair_of


def test_the_task_as_it_stands_names_the_provider_and_the_request_where_there_is_no_task() -> None:
    spec = CreateTask(provider_type=PROVIDER_TYPE_FAL_STANDARD, noop=CreateNoopTask())
    assert pair_of(spec, Task()) == Pair(TASK_TYPE_NOOP, PROVIDER_TYPE_FAL_STANDARD)
    assert pair_of(spec, Task(provider_type=PROVIDER_TYPE_VERTEX)) == Pair(TASK_TYPE_NOOP, PROVIDER_TYPE_VERTEX)


def test_work_of_no_provider_is_the_installations_own() -> None:
    spec = CreateTask(background_remove=CreateBackgroundRemovalTask())
    assert pair_of(spec, Task()) == Pair(TASK_TYPE_BACKGROUND_REMOVE, PROVIDER_TYPE_LOCAL)


def test_training_has_no_task_type() -> None:
    assert pair_of(CreateTask(), Task(), JOB_KIND_TRAINING) == TRAINING
    assert TRAINING.label == "TRAINING"


def test_a_type_that_is_not_known_is_still_counted() -> None:
    unknown = pair_of(CreateTask(), Task())
    assert (unknown.task_type, unknown.label) == (TASK_TYPE_UNSPECIFIED, "UNKNOWN")


def test_a_pair_is_named_to_the_service_as_it_is() -> None:
    assert Pair(TASK_TYPE_NOOP, PROVIDER_TYPE_VERTEX).to_wire() == ServedPair(
        task_type=TASK_TYPE_NOOP, provider_type=PROVIDER_TYPE_VERTEX, job_kind=JOB_KIND_TASK
    )
