"""What operators are told of the mesh itself: how it is, every few seconds, and each change of that."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from atelier.events.v1 import live_pb2
from google.protobuf.message import Message


@dataclass(frozen=True, slots=True)
class MeshState:
    """How the mesh is.

    Attributes:
        status: In one word.
        services: The same of each service.
        problems: What does not work: the service, and its part, e.g. `tasks: postgresql`.
        degradation: How much works, in the words of monitoring; empty where that is not known.
    """

    status: str
    services: Mapping[str, str] = field(default_factory=dict)
    problems: Sequence[str] = ()
    degradation: str = ""


def status(state: MeshState, *, clients: int, version: str) -> Message:
    """Return how the mesh is.

    Args:
        state: How it is.
        clients: How many clients listen.
        version: Version of the mesh.
    """
    return live_pb2.SystemStatusEvent(
        status=state.status,
        services=state.services,
        problems=state.problems,
        clients=clients,
        version=version,
        degradation=state.degradation or None,
    )


def changes(before: MeshState, now: MeshState) -> Iterator[Message]:
    """Return what is different from before."""
    for name, state in sorted(now.services.items()):
        earlier = before.services.get(name, state)
        if earlier != state:
            problems = [one for one in now.problems if one.partition(":")[0] == name]
            yield live_pb2.ServiceStatusChangedEvent(
                service=name, status=state, previous_status=earlier, message=", ".join(problems) or None
            )
    if before.status != now.status:
        yield live_pb2.SystemHealthChangedEvent(
            health=now.status, previous_health=before.status, components=now.services
        )
