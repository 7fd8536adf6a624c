from typing import Any

import pytest
from atelier.tasks.v1 import tasks_service_pb2 as tasks
from atelier.tasks.v1.task_pb2 import CreateTask

from meshkit import idempotency
from meshkit.errors import ErrorKind, MeshError


@pytest.mark.parametrize("key", ["a", "0" * 255, "5c1f-uuid~!"])
def test_a_key_is_noted_for_the_call(key: Any) -> None:
    idempotency.enter(key)
    assert idempotency.current_key() == key
    idempotency.enter("")
    assert idempotency.current_key() == ""


@pytest.mark.parametrize("key", ["0" * 256, "a b", "a\n", "é", "\0"])
def test_a_malformed_key_is_refused(key: Any) -> None:
    with pytest.raises(MeshError) as caught:
        idempotency.enter(key)
    assert caught.value.kind is ErrorKind.INVALID


def test_equal_requests_hash_alike_and_others_do_not() -> Any:
    def hashed(**config: Any) -> Any:
        request = tasks.CreateTaskRequest(task=CreateTask(origin_instance="i"))
        request.task.config.update(config)
        return idempotency.request_hash(request)

    assert hashed(a=1, b=2, c=3) == hashed(c=3, b=2, a=1)
    assert hashed(a=1) != hashed(a=2)
    assert len(hashed()) == 32


def test_the_key_of_a_call_carries_its_method_and_request() -> None:
    request = tasks.CreateTaskRequest(task=CreateTask(origin_instance="i"))
    idempotency.enter("k")
    key = idempotency.IdempotencyKey.of_call("CreateTask", request)
    assert key == idempotency.IdempotencyKey("CreateTask", "k", idempotency.request_hash(request))
    idempotency.enter("")
    assert idempotency.IdempotencyKey.of_call("CreateTask", request) is None
