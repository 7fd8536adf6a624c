"""How the mesh is, by what the gateway sees and what monitoring does."""

from meshkit.live.system import MeshState
from services.gateway.live.degradation import OperatorTokens, together


def part(name: str, status: str = "healthy", error: str | None = None) -> dict[str, object]:
    return {"name": name, "status": status, "error_message": error}


def test_of_what_both_see_the_worse_is_told() -> None:
    own = MeshState("degraded", {"tasks": "degraded", "training": "healthy"}, ["tasks: nats"])
    told = {
        "mode": "degraded",
        "services": [
            part("tasks"),
            part("training", "unhealthy", "no answer"),
            part("editing_workers", "unhealthy", "3 tasks wait and no worker serves them"),
        ],
    }
    assert together(own, told) == MeshState(
        "degraded",
        {"tasks": "degraded", "training": "unhealthy", "editing_workers": "unhealthy"},
        ["editing_workers: 3 tasks wait and no worker serves them", "tasks: nats", "training: no answer"],
        degradation="degraded",
    )


def test_a_mode_without_something_critical_is_unhealthy() -> None:
    own = MeshState("healthy", {"tasks": "healthy"})
    for mode, status in (("normal", "healthy"), ("minimal", "unhealthy"), ("offline", "unhealthy")):
        assert together(own, {"mode": mode, "services": []}).status == status
    assert together(MeshState("unhealthy"), {"mode": "normal", "services": []}).status == "unhealthy"


def test_the_token_of_the_operator_who_came_last_is_used_while_it_listens() -> None:
    tokens = OperatorTokens()
    assert tokens.newest == ""
    with tokens.held("a"):
        with tokens.held("b"):
            assert tokens.newest == "b"
        assert tokens.newest == "a"
    assert tokens.newest == ""
