"""Deliveries on real PostgreSQL to receivers over real sockets; days pass by a clock that runs ahead."""

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from atelier.events.v1 import events_pb2
from standardwebhooks import Webhook

from meshkit.db import Database
from meshkit.fetcher import Fetcher
from meshkit.topology import TASKS
from services.tasks.events import to_delivery
from services.tasks.postgres.webhooks import PostgresWebhooks
from services.tasks.webhooks import domain as webhooks
from services.tasks.webhooks.domain import (
    LEASE,
    SCHEDULE,
    ClaimedDelivery,
    ClaimRoom,
    DeliveryFailure,
    DeliveryRecord,
    DeliveryVerdict,
    ReceiverAnswer,
    ReceiverLane,
)
from services.tasks.webhooks.sender import PER_TARGET, Sender
from tests.integration.tasks.conftest import until
from tests.integration.tasks.receivers import Receiver, free_port, receiving

LOCAL = ("127.0.0.1/32",)


@dataclass
class Hooks:
    """The store and a sender, and the time that they live in."""

    database: Database
    ahead: timedelta = timedelta()

    def __post_init__(self) -> None:
        self.store = PostgresWebhooks(self.database, lambda: self.ahead)
        self.sender = self.another()

    def another(self, store: Any = None, allow: tuple[str, ...] = LOCAL, **more: Any) -> Sender:
        return Sender(store or self.store, Fetcher(allow, **more))

    async def hand_in(self, url: str, version: int = 1, entity: UUID | None = None, tenant: str = "acme") -> str:
        event = events_pb2.TaskStatusEvent(event_type=events_pb2.EVENT_TYPE_TASK_STATUS_UPDATE, progress=version)
        ident = uuid4()
        await self.store.enqueue(
            to_delivery(event, event_id=ident, tenant=tenant, entity_id=entity or uuid4(), version=version, url=url)
        )
        return str(ident)

    async def send(self, sender: Sender | None = None, rounds: int = 1) -> None:
        for _ in range(rounds):
            await (sender or self.sender).run_once()
            await (sender or self.sender).settled()

    async def get(self, ident: str) -> DeliveryRecord:
        record = await self.store.get(UUID(ident))
        assert record is not None
        return record

    async def live_until(self, end: timedelta) -> None:
        """Lets time pass from one due moment to the next, as the loop would see them."""
        while True:
            await self.send()
            async with self.database.connection() as conn:
                cursor = await conn.execute(
                    "SELECT min(due_at) - now() FROM webhook_deliveries WHERE status = 'PENDING'"
                )
                [(due,)] = await cursor.fetchall()
            if due is None or due > end:
                self.ahead = max(self.ahead, end)
                return
            self.ahead = max(self.ahead, due)


@pytest.fixture
async def hooks(mesh_dsn: str) -> AsyncIterator[Hooks]:
    database = Database(mesh_dsn, schema=TASKS.schema, max_size=6)
    await database.open()
    made = Hooks(database)
    yield made
    await made.sender.close()
    await database.close()


def signed_by(receiver: Receiver, key: str) -> bool:
    """Whether every request carries a signature of the key over its own id and time."""
    for headers, body in receiver.requests:
        moment = datetime.fromtimestamp(int(headers["webhook-timestamp"]), UTC)
        if Webhook(key).sign(headers["webhook-id"], moment, body.decode()) not in headers["webhook-signature"].split():
            return False
    return True


async def test_a_receiver_that_is_down_for_two_days_gets_each_event_once_in_order(hooks: Hooks) -> None:
    port, entities = free_port(), [uuid4(), uuid4()]
    url = f"http://127.0.0.1:{port}/hook"
    expected = {entity: [await hooks.hand_in(url, version, entity) for version in (1, 2, 3)] for entity in entities}
    await hooks.live_until(timedelta(days=2))
    first = await hooks.get(expected[entities[0]][0])
    assert 6 <= first.attempt_count <= len(SCHEDULE), "nine where jitter made every wait short"
    assert first.last_error == "webhook_url could not be reached"
    assert (await hooks.get(expected[entities[0]][1])).attempt_count == 0
    async with receiving(port) as receiver:
        await hooks.live_until(timedelta(days=4))
        assert Counter(receiver.ids) == Counter(ident for idents in expected.values() for ident in idents)
        for idents in expected.values():
            assert [ident for ident in receiver.ids if ident in idents] == idents
        assert signed_by(receiver, (await hooks.store.secret("acme")).key)
    for idents in expected.values():
        for ident in idents:
            record = await hooks.get(ident)
            assert (record.status, record.last_status_code, record.due_at) == ("DELIVERED", 200, None)
    assert len(await hooks.store.attempts(first.id)) == first.attempt_count + 1


async def test_a_receiver_that_never_comes_back_is_given_up_after_three_days_and_its_next_event_tried(
    hooks: Hooks,
) -> None:
    url, entity = f"http://127.0.0.1:{free_port()}/hook", uuid4()
    first, second = await hooks.hand_in(url, 1, entity), await hooks.hand_in(url, 2, entity)
    await hooks.live_until(timedelta(days=2.5))
    assert (await hooks.get(first)).status == "PENDING"
    await hooks.live_until(timedelta(days=4))
    given_up = await hooks.get(first)
    assert (given_up.failure, given_up.attempt_count) == (DeliveryFailure.EXHAUSTED, len(SCHEDULE) + 1)
    assert (await hooks.get(second)).attempt_count > 0


async def test_an_error_is_tried_again_under_the_same_id(hooks: Hooks) -> None:
    async with receiving(statuses=[500, 503]) as receiver:
        ident = await hooks.hand_in(receiver.url)
        await hooks.send(rounds=3)
        assert receiver.ids == [ident]
        await hooks.live_until(timedelta(hours=1))
        assert receiver.ids == [ident] * 3
        assert [note.status_code for note in await hooks.store.attempts(UUID(ident))] == [500, 503, 200]
        assert len({body for _, body in receiver.requests}) == 1


async def test_a_receiver_that_is_busy_is_left_alone_for_as_long_as_it_asks(hooks: Hooks) -> None:
    async with receiving(statuses=[503, 429], retry_after="7200") as receiver:
        ident = await hooks.hand_in(receiver.url)
        await hooks.live_until(timedelta(minutes=119))
        assert receiver.ids == [ident]
        await hooks.live_until(timedelta(minutes=238))
        assert receiver.ids == [ident] * 2
        await hooks.live_until(timedelta(hours=5))
        assert receiver.ids == [ident] * 3
        assert (await hooks.get(ident)).status == "DELIVERED"


async def test_a_redirect_is_not_followed(hooks: Hooks) -> None:
    async with receiving() as elsewhere, receiving(otherwise=307, location=elsewhere.url) as receiver:
        ident = await hooks.hand_in(receiver.url)
        await hooks.send()
        record = await hooks.get(ident)
        assert (record.status, record.last_status_code) == ("PENDING", 307)
        assert len(receiver.requests) == 1
        assert elsewhere.requests == []


async def test_410_ends_a_delivery_and_those_after_it_until_one_is_sent_again_by_hand(hooks: Hooks) -> None:
    entity = uuid4()
    async with receiving(statuses=[410]) as receiver:
        first, second = await hooks.hand_in(receiver.url, 1, entity), await hooks.hand_in(receiver.url, 2, entity)
        await hooks.send(rounds=2)
        third = await hooks.hand_in(receiver.url)
        await hooks.live_until(timedelta(days=4))
        assert receiver.ids == [first]
        for ident in (first, second, third):
            assert (await hooks.get(ident)).failure == DeliveryFailure.GONE
        assert await hooks.store.attempts(UUID(third)) == []
        await hooks.store.redeliver(UUID(third))
        await hooks.send()
        fourth = await hooks.hand_in(receiver.url)
        await hooks.send()
        assert receiver.ids == [first, third, fourth]
        assert (await hooks.get(third)).status == "DELIVERED"


async def test_another_tenants_410_disables_nothing_here(hooks: Hooks) -> None:
    async with receiving(statuses=[410]) as receiver:
        await hooks.hand_in(receiver.url, tenant="other")
        await hooks.send()
        ident = await hooks.hand_in(receiver.url)
        await hooks.send()
        assert (await hooks.get(ident)).status == "DELIVERED"


async def test_a_name_that_leads_inside_is_refused_when_it_is_sent_to(hooks: Hooks) -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    async with receiving() as receiver:
        ident = await hooks.hand_in(f"http://hooks.example.com:{receiver.port}/hook")
        await hooks.send(hooks.another(allow=(), resolver=resolve))
        assert receiver.requests == []
    record = await hooks.get(ident)
    assert (record.failure, record.last_status_code) == (DeliveryFailure.REFUSED, None)
    assert "may not be fetched" in str(record.last_error)


async def test_a_name_that_does_not_exist_is_tried_again(hooks: Hooks) -> None:
    async def resolve(_host: str, _port: int) -> list[str]:
        return []

    ident = await hooks.hand_in("http://hooks.example.com/hook")
    await hooks.send(hooks.another(resolver=resolve))
    assert (await hooks.get(ident)).status == "PENDING"


async def test_a_receiver_that_does_not_answer_in_time_is_tried_again(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 2.0)
    async with receiving(hangs=True) as receiver:
        ident = await hooks.hand_in(receiver.url)
        await hooks.send()
        record = await hooks.get(ident)
        assert (record.status, record.last_error) == ("PENDING", "webhook_url did not answer in time")


async def test_a_dead_receiver_slows_nobody_else(hooks: Hooks) -> None:
    async with receiving(hangs=True) as dead, receiving() as live:
        for _ in range(60):
            await hooks.hand_in(dead.url)
        expected = [await hooks.hand_in(live.url) for _ in range(30)]

        async def delivered() -> bool:
            await hooks.sender.run_once()
            return len(live.requests) == len(expected)

        await until(delivered, 60)
        assert Counter(live.ids) == Counter(expected)
        assert len(dead.requests) <= PER_TARGET


async def test_a_sender_killed_before_it_noted_the_answer_leaves_its_delivery_to_another(hooks: Hooks) -> None:
    class Killed(PostgresWebhooks):
        async def finish(
            self, claimed: ClaimedDelivery, answer: ReceiverAnswer | None, verdict: DeliveryVerdict
        ) -> bool:
            raise asyncio.CancelledError

    entity = uuid4()
    async with receiving() as receiver:
        first, second = await hooks.hand_in(receiver.url, 1, entity), await hooks.hand_in(receiver.url, 2, entity)
        await hooks.send(hooks.another(Killed(hooks.database, lambda: hooks.ahead)))
        await hooks.send(rounds=2)
        assert receiver.ids == [first]
        hooks.ahead += LEASE + timedelta(seconds=1)
        await hooks.send(rounds=3)
        assert receiver.ids == [first, first, second]


async def test_an_outcome_that_comes_after_the_lease_was_lost_changes_nothing(hooks: Hooks) -> None:
    async with receiving() as receiver:
        ident = await hooks.hand_in(receiver.url)
        [late] = await hooks.store.claim(ClaimRoom(1, 1, 1))
        hooks.ahead += LEASE + timedelta(seconds=1)
        await hooks.send()
        assert not await hooks.store.finish(
            late, ReceiverAnswer(500, "no"), webhooks.judge(ReceiverAnswer(500, "no"), 0, 0.0)
        )
        assert (await hooks.get(ident)).status == "DELIVERED"


async def test_several_replicas_send_each_event_once_and_in_order(hooks: Hooks) -> None:
    entities = [uuid4() for _ in range(8)]
    async with receiving() as one, receiving() as two:
        for version in range(1, 6):
            for number, entity in enumerate(entities):
                await hooks.hand_in((one, two)[number % 2].url, version, entity)
        senders = [hooks.another() for _ in range(3)]

        async def delivered() -> bool:
            await asyncio.gather(*(hooks.send(sender) for sender in senders))
            return len(one.requests) + len(two.requests) >= 40

        await until(delivered, 60)
        await hooks.send(rounds=2)
        ids = one.ids + two.ids
        assert len(ids) == len(set(ids)) == 40
        for receiver in (one, two):
            order: dict[UUID, list[float]] = {}
            for ident, body in zip(receiver.ids, receiver.bodies, strict=True):
                order.setdefault((await hooks.get(ident)).entity_id, []).append(body["progress"])
            assert all(versions == [1, 2, 3, 4, 5] for versions in order.values())


async def test_a_former_secret_signs_beside_the_new_one_for_a_while(hooks: Hooks) -> None:
    former = (await hooks.store.secret("acme")).key
    new = (await hooks.store.rotate("acme", timedelta(hours=1))).key
    assert new != former
    assert (await hooks.store.secret("acme")).key == new
    async with receiving() as receiver:
        await hooks.hand_in(receiver.url)
        await hooks.send()
        assert signed_by(receiver, former)
        assert signed_by(receiver, new)
        receiver.requests.clear()
        hooks.ahead += timedelta(hours=2)
        await hooks.hand_in(receiver.url)
        await hooks.send()
        assert not signed_by(receiver, former)
        assert signed_by(receiver, new)


async def test_receivers_of_one_tenant_that_hang_keep_no_webhook_of_another(hooks: Hooks) -> None:
    sender = Sender(hooks.store, Fetcher(LOCAL), in_flight=32, per_tenant=8)
    async with AsyncExitStack() as stack:
        dead = [await stack.enter_async_context(receiving(hangs=True)) for _ in range(10)]
        live = await stack.enter_async_context(receiving())
        for _ in range(8):
            for receiver in dead:
                await hooks.hand_in(receiver.url, tenant="slow")
        await sender.run_once()
        expected = [await hooks.hand_in(live.url, tenant="quick") for _ in range(12)]

        async def delivered() -> bool:
            await sender.run_once()
            return len(live.requests) == len(expected)

        await until(delivered)
        assert sum(len(receiver.requests) for receiver in dead) <= 8
        await sender.close()


async def test_a_target_that_hangs_for_one_tenant_is_open_to_another(hooks: Hooks) -> None:
    url = f"http://127.0.0.1:{free_port()}/hook"
    for _ in range(10):
        await hooks.hand_in(url, tenant="slow")
    theirs = await hooks.hand_in(url, tenant="quick")
    full = ReceiverLane("slow", url.partition("//")[2].partition("/")[0])
    claimed = await hooks.store.claim(ClaimRoom(100, 8, 4, {"slow": 4}, {full: 4}))
    assert [str(one.id) for one in claimed] == [theirs]
    assert await hooks.store.claim(ClaimRoom(100, 4, 4, {"slow": 4})) == []
    assert len(await hooks.store.claim(ClaimRoom(100, 8, 6, {"slow": 4}, {full: 4}))) == 2


async def test_a_tenant_has_first_what_it_has_fewest_of(hooks: Hooks) -> None:
    for port in range(20):
        await hooks.hand_in(f"http://127.0.0.1:{port + 1}/hook", tenant="busy")
    await hooks.hand_in("http://127.0.0.1:1/hook", tenant="idle")
    claimed = await hooks.store.claim(ClaimRoom(2, 20, 4, {"busy": 3}))
    assert [one.tenant for one in claimed] == ["idle", "busy"]


async def test_a_receiver_that_did_not_answer_is_asked_by_one_request_until_it_does(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 2.0)
    async with receiving(hangs=True) as receiver:
        for _ in range(12):
            await hooks.hand_in(receiver.url)
        await hooks.send()
        assert len(receiver.requests) == PER_TARGET
        await hooks.send()
        assert len(receiver.requests) == PER_TARGET + 1
        receiver.hangs = False
        await hooks.send()
        assert len(receiver.requests) == PER_TARGET + 2
        await hooks.send()
        assert len(receiver.requests) == 2 * PER_TARGET + 2


async def test_receivers_that_do_not_answer_take_half_of_their_tenants_share(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 2.0)
    sender = Sender(hooks.store, Fetcher(LOCAL), per_tenant=8)
    async with AsyncExitStack() as stack:
        dead = [await stack.enter_async_context(receiving(hangs=True)) for _ in range(8)]
        for _ in range(5):
            for receiver in dead:
                await hooks.hand_in(receiver.url)
        await hooks.send(sender)
        before = sum(len(receiver.requests) for receiver in dead)
        monkeypatch.setattr(webhooks, "TIMEOUT_SECONDS", 15.0)
        await sender.run_once()
        live = await stack.enter_async_context(receiving())
        ident = await hooks.hand_in(live.url)

        async def delivered() -> bool:
            await sender.run_once()
            return live.ids == [ident]

        await until(delivered)
        assert sum(len(receiver.requests) for receiver in dead) - before <= 4
        await sender.close()


async def test_names_whose_resolver_never_answers_keep_no_webhook_of_another_and_no_thread_of_the_process(
    hooks: Hooks, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, answers = socket.getaddrinfo, threading.Event()

    def look_up(host: str, port: int, *args: Any, **more: Any) -> Any:
        if host.endswith("silent.example"):
            answers.wait(60)
            raise socket.gaierror(socket.EAI_AGAIN, "no answer")
        return found("127.0.0.1" if host == "live.example" else host, port, *args, **more)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    try:
        async with receiving() as live:
            for number in range(200):
                await hooks.hand_in(f"http://n{number}.silent.example/hook", tenant="slow")
            await hooks.sender.run_once()
            ident = await hooks.hand_in(f"http://live.example:{live.port}/hook", tenant="quick")

            async def delivered() -> bool:
                await hooks.sender.run_once()
                return live.ids == [ident]

            await until(delivered)
            assert await asyncio.gather(*(asyncio.to_thread(int) for _ in range(40))) == [0] * 40
            await hooks.sender.close()
    finally:
        answers.set()
