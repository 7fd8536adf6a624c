"""How ends of tasks reach their workflows: each once, those that wait together."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import UUID, uuid4

import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import enums_pb2, task_pb2

from meshkit.bus import BusMessage
from meshkit.errors import MeshError, unavailable
from services.workflows.domain import StepRecord
from services.workflows.task_events import TaskEventConsumer
from tests.unit.workflows.rows import step

FLOW, OTHER = uuid4(), uuid4()


def ended(flow: UUID, *, told: bool = True, version: int = 3) -> tuple[UUID, BusMessage]:
    task_id = uuid4()
    event = events_pb2.TaskStatusEvent(task_id=str(task_id), status=enums_pb2.TASK_STATUS_COMPLETED)
    if told:
        event.task.CopyFrom(task_pb2.Task(id=str(task_id), workflow_id=str(flow), version=version))
    headers = {"Atelier-Version": str(version), "Atelier-Tenant": "acme"}
    return task_id, BusMessage("s", event.SerializeToString(), headers)


class World:
    """What the consumer works with."""

    def __init__(self, *behind: UUID) -> None:
        self.behind = behind
        self.told: list[dict[UUID, set[str]]] = []
        self.asked: list[tuple[UUID | None, str]] = []
        self.failures: dict[UUID, Exception] = {}
        self.failure: Exception | None = None
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.consumer = TaskEventConsumer(self, self.tell, self.ask, linger=0, patience_seconds=3600)  # type: ignore[arg-type]  # the one method that is called

    async def steps_behind(self, versions: dict[UUID, int]) -> list[StepRecord]:
        found = [one for one in versions if one in self.behind]
        return [step("a", attempt=1, task_id=one, task_version=0) for one in found]

    async def tell(self, ended: Mapping[UUID, Sequence[task_pb2.Task]]) -> Mapping[UUID, object]:
        self.told.append({flow: {task.id for task in tasks} for flow, tasks in ended.items()})
        await self.may_go.wait()
        if self.failure is not None:
            raise self.failure
        return {flow: self.failures.get(flow) for flow in ended}

    async def ask(self, one: StepRecord, tenant: str) -> None:
        self.asked.append((one.task_id, tenant))

    async def rest(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)


async def test_ends_that_come_while_a_workflow_is_decided_upon_are_decided_upon_together() -> None:
    world = World()
    world.may_go.clear()
    made = [ended(FLOW) for _ in range(5)]
    for _, message in made:
        await world.consumer.notice(message)
        await world.rest()
    other, message = ended(OTHER)
    await world.consumer.notice(message)
    await world.rest()
    world.may_go.set()
    await world.rest()
    first, *rest = [str(one) for one, _ in made]
    assert world.told == [{FLOW: {first}}, {FLOW: set(rest), OTHER: {str(other)}}]


async def test_workflows_whose_ends_wait_are_decided_upon_together() -> None:
    world = World()
    for _ in range(40):
        await world.consumer.notice(ended(uuid4())[1])
    await world.rest()
    assert [len(group) for group in world.told] == [32, 8]


async def test_an_end_that_comes_alone_waits_for_nobody() -> None:
    world = World()
    world.consumer = TaskEventConsumer(world, world.tell, world.ask, linger=3600)  # type: ignore[arg-type]  # as above
    for _ in range(2):
        await world.consumer.notice(ended(FLOW)[1])
        await world.rest()
    assert len(world.told) == 2


async def test_a_group_that_waits_for_a_lock_keeps_no_other_workflow_waiting_for_long() -> None:
    world = World()
    world.consumer = TaskEventConsumer(world, world.tell, world.ask, patience_seconds=0.01)  # type: ignore[arg-type]  # as above
    locked = world.may_go = asyncio.Event()
    await world.consumer.notice(ended(FLOW)[1])
    await world.rest()
    world.may_go = asyncio.Event()
    world.may_go.set()
    (second, more), (other, message) = ended(FLOW), ended(OTHER)
    world.behind = (second, other)
    held = asyncio.create_task(world.consumer.batch([more]))
    await world.consumer.batch([message])
    assert [set(group) for group in world.told] == [{FLOW}, {OTHER}]
    locked.set()
    await held
    assert world.told[2] == {FLOW: {str(second)}}


async def test_what_fails_for_one_workflow_is_told_of_it_alone() -> None:
    made = [ended(FLOW), ended(OTHER)]
    world = World(*(one for one, _ in made))
    world.failures[FLOW] = unavailable("The database is not reachable", reason="X")
    handling = [asyncio.create_task(world.consumer.batch([message])) for _, message in made]
    outcomes = await asyncio.gather(*handling, return_exceptions=True)
    assert [set(group) for group in world.told] == [{FLOW, OTHER}]
    assert outcomes == [world.failures[FLOW], None]


async def test_events_that_were_being_decided_upon_at_the_close_are_not_acknowledged() -> None:
    made = [ended(FLOW), ended(OTHER)]
    world = World(*(one for one, _ in made))
    world.may_go.clear()
    handling = [asyncio.create_task(world.consumer.batch([message])) for _, message in (*made, made[0])]
    await world.rest()
    assert world.told
    await world.consumer.close()
    outcomes = await asyncio.gather(*handling, return_exceptions=True)
    assert [type(one) for one in outcomes] == [asyncio.CancelledError] * 3
    count = len(world.told)
    await world.consumer.notice(ended(FLOW)[1])
    await world.rest()
    assert len(world.told) == count, "nothing is begun after it"


@pytest.mark.parametrize("turns", range(8))
async def test_a_close_at_any_moment_leaves_nobody_waiting(turns: int) -> None:
    task_id, message = ended(FLOW)
    world = World(task_id)
    world.may_go.clear()
    handling = asyncio.create_task(world.consumer.batch([message]))
    for _ in range(turns):
        await asyncio.sleep(0)
    await world.consumer.close()
    async with asyncio.timeout(60):
        assert isinstance((await asyncio.gather(handling, return_exceptions=True))[0], asyncio.CancelledError)


async def test_an_event_that_a_notice_was_ahead_of_costs_no_decision() -> None:
    world = World()
    await world.consumer.batch([ended(FLOW)[1], ended(OTHER)[1]])
    assert world.told == []


async def test_an_event_without_its_task_has_it_asked_for() -> None:
    task_id, message = ended(FLOW, told=False)
    world = World(task_id)
    await world.consumer.batch([message])
    assert (world.asked, world.told) == ([(task_id, "acme")], [])


async def test_events_come_again_where_one_of_them_could_not_be_decided_upon() -> None:
    made = [ended(FLOW), ended(OTHER)]
    world = World(*(one for one, _ in made))
    world.failure = unavailable("The database is not reachable", reason="X")
    with pytest.raises(MeshError):
        await world.consumer.batch([message for _, message in made])
    world.failure = None
    await world.consumer.batch([message for _, message in made])
    assert [set(group) for group in world.told] == [{FLOW, OTHER}] * 2


async def test_an_event_that_cannot_be_read_keeps_no_other_from_being_processed() -> None:
    task_id, message = ended(FLOW)
    world = World(task_id)
    await world.consumer.batch([BusMessage("s", b"\xff\xff", {}), message])
    assert world.told == [{FLOW: {str(task_id)}}]


async def test_a_notice_that_fails_is_left_to_its_event(caplog: Any) -> None:
    world = World()
    world.failure = unavailable("The database is not reachable", reason="X")
    await world.consumer.notice(ended(FLOW)[1])
    await world.rest()
    world.failure = None
    later, message = ended(FLOW)
    await world.consumer.notice(message)
    await world.rest()
    assert world.told[1] == {FLOW: {str(later)}}, "later ends of the workflow are processed"
    await world.consumer.close()
