from typing import Any

import grpc
import pytest

from meshkit.server import describe

HANDLER: Any = grpc.unary_unary_rpc_method_handler(lambda request, _: request)


@pytest.mark.parametrize(
    ("path", "scope"),
    [
        ("atelier.tasks.v1.TasksService/GetTask", "read"),
        ("atelier.tasks.v1.WorkerService/Lease", "worker"),
        ("grpc.health.v1.Health/Check", "mesh"),
        ("atelier.none.v1.NoService/Get", "mesh"),
    ],
    ids=["reading", "working", "contract without a rule", "no contract"],
)
def test_a_method_without_a_rule_is_the_meshs_own(path: str, scope: str) -> None:
    assert describe(path, HANDLER).scope == scope
