"""Webhooks through the service: tasks tell theirs, other services hand theirs in, callers look and send again."""

import json
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest
from atelier.events.v1 import events_pb2
from atelier.tasks.v1 import webhooks_service_pb2 as pb
from atelier.tasks.v1.webhooks_service_pb2_grpc import WebhookServiceStub
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.timestamp_pb2 import Timestamp
from standardwebhooks import Webhook

from meshkit import spans
from meshkit.channel import call_metadata
from meshkit.errors import ErrorKind, MeshError
from meshkit.media_urls import MediaSigner
from meshkit.spans import Span
from tests.integration.tasks.conftest import Mesh, StartMesh, noop, until
from tests.integration.tasks.receivers import receiving


@pytest.fixture
async def mesh(start_mesh: StartMesh) -> Mesh:
    return await start_mesh(fetch_allow_private=["127.0.0.1/32"])


def hooks(mesh: Mesh, tenant: str = "acme", scopes: tuple[str, ...] = ("read", "write")) -> Any:
    return mesh.channel(mesh.token(tenant, scopes)).stub(WebhookServiceStub)


async def send(mesh: Mesh, rounds: int = 1) -> None:
    for _ in range(rounds):
        await mesh.running.sender.run_once()
        await mesh.running.sender.settled()


def packed(event: Any) -> AnyMessage:
    result = AnyMessage()
    result.Pack(event)
    return result


async def test_a_tasks_life_is_told_to_its_webhook_in_order_and_signed(mesh: Mesh) -> None:
    async with receiving() as receiver:
        task = await mesh.create(noop(webhook_url=receiver.url, origin_zone="eu"))
        silent = await mesh.create(noop(priority=0))
        worker = await mesh.worker()
        for lease in await worker.lease(2):
            await worker.complete(lease)
        await send(mesh, 4)
        told = receiver.bodies
        assert [(one["event_type"], one["status"]) for one in told] == [
            ("task_created", "PENDING"),
            ("task_status_update", "EXECUTING"),
            ("task_status_update", "COMPLETED"),
        ]
        assert {one["task_id"] for one in told} == {task.id} != {silent.id}
        assert told[2]["progress"] == 100
        assert told[2]["origin_zone"] == "eu"
        key = (await hooks(mesh, scopes=("admin",)).GetSecret(pb.GetSecretRequest())).secret.key
        for headers, body in receiver.requests:
            Webhook(key).verify(body, headers)
        published = await mesh.rows(
            "SELECT event_id::text FROM outbox WHERE position(%s IN payload) > 0", task.id.encode()
        )
        assert set(receiver.ids) == {ident for (ident,) in published}


async def test_a_completed_task_tells_the_address_of_its_result_signed_when_it_is_sent(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(fetch_allow_private=["127.0.0.1/32"], public_url="https://media.example")
    signer = MediaSigner.from_settings(mesh.settings)

    def opened(url: str) -> tuple[str, str]:
        assert url.startswith("https://media.example/api/v1/media/")
        media = signer.open(url.rpartition("/")[2])
        return media.tenant, media.path

    async with receiving() as receiver:
        task = await mesh.create(noop(webhook_url=receiver.url))
        worker = await mesh.worker()
        [lease] = await worker.lease()
        path = f"{lease.result_prefix}result.bin"
        await worker.complete(lease, path)
        receiver.statuses = [200, 200, 500]
        await send(mesh, 4)
        assert [one.get("media_url") for one in receiver.bodies[:2]] == [None, None]
        assert opened(receiver.bodies[2]["media_url"]) == ("acme", path)
        assert opened((await mesh.get(task.id)).media_url) == ("acme", path)

        # What lies in the database holds no address: each attempt and each look is given a new one.
        [(body,)] = await mesh.rows("SELECT body FROM webhook_deliveries WHERE media IS NOT NULL")
        assert b"media.example" not in bytes(body)
        [(ident, *_)] = await mesh.rows("SELECT id::text FROM webhook_deliveries WHERE media IS NOT NULL")
        whole = (await hooks(mesh).GetDelivery(pb.GetDeliveryRequest(delivery_id=ident))).delivery
        assert opened(json.loads(whole.body)["media_url"]) == ("acme", path)
        await hooks(mesh).Redeliver(pb.RedeliverRequest(delivery_id=ident))
        await send(mesh)
        assert receiver.ids.count(ident) == 2
        key = (await hooks(mesh, scopes=("admin",)).GetSecret(pb.GetSecretRequest())).secret.key
        for headers, sent in receiver.requests:
            Webhook(key).verify(sent, headers)


async def test_a_task_that_failed_says_why(mesh: Mesh) -> None:
    async with receiving() as receiver:
        task = await mesh.create(noop(webhook_url=receiver.url))
        worker = await mesh.worker()
        [lease] = await worker.lease()
        await worker.fail(lease, "out of paint", retryable=False)
        await send(mesh, 4)
        assert receiver.bodies[-1]["status"] == "FAILED"
        assert receiver.bodies[-1]["error_message"] == "out of paint"
        assert receiver.bodies[-1]["error_category"] == "PROVIDER"
        assert {one["task_id"] for one in receiver.bodies} == {task.id}


async def test_the_service_sends_by_itself(start_mesh: StartMesh) -> None:
    mesh = await start_mesh(fetch_allow_private=["127.0.0.1/32"], run_loops=True)
    async with receiving() as receiver:
        await mesh.create(noop(webhook_url=receiver.url))

        async def told() -> bool:
            return len(receiver.requests) == 1

        await until(told)


async def test_the_log_shows_deliveries_to_their_tenant_alone(mesh: Mesh) -> None:
    async with receiving(statuses=[500]) as receiver:
        task = await mesh.create(noop(webhook_url=receiver.url))
        await send(mesh)
        [seen] = (await hooks(mesh).ListDeliveries(pb.ListDeliveriesRequest(entity_id=task.id))).deliveries
        assert (seen.status, seen.last_status_code) == (pb.DELIVERY_STATUS_PENDING, 500)
        assert seen.HasField("next_attempt_at")
        whole = (await hooks(mesh).GetDelivery(pb.GetDeliveryRequest(delivery_id=seen.id))).delivery
        assert [one.status_code for one in whole.attempts] == [500]
        assert whole.body.encode() == receiver.requests[0][1]
        again = (await hooks(mesh).Redeliver(pb.RedeliverRequest(delivery_id=seen.id))).delivery
        assert again.status == pb.DELIVERY_STATUS_PENDING
        await send(mesh)
        assert receiver.ids == [seen.id, seen.id]
        done = pb.ListDeliveriesRequest(status=pb.DELIVERY_STATUS_DELIVERED)
        assert [one.id for one in (await hooks(mesh).ListDeliveries(done)).deliveries] == [seen.id]

        stranger = hooks(mesh, "stranger")
        assert not (await stranger.ListDeliveries(pb.ListDeliveriesRequest())).deliveries
        for method, request in (
            (stranger.GetDelivery, pb.GetDeliveryRequest(delivery_id=seen.id)),
            (stranger.Redeliver, pb.RedeliverRequest(delivery_id=seen.id)),
        ):
            with pytest.raises(MeshError) as caught:
                await method(request)
            assert caught.value.kind is ErrorKind.NOT_FOUND
        across = hooks(mesh, "staff", ("support",))
        assert [one.id for one in (await across.ListDeliveries(pb.ListDeliveriesRequest())).deliveries] == [seen.id]


async def test_secrets_are_for_administrators_and_each_tenants_own(mesh: Mesh) -> None:
    admin = hooks(mesh, scopes=("admin",))
    first = (await admin.GetSecret(pb.GetSecretRequest())).secret
    assert (await admin.GetSecret(pb.GetSecretRequest())).secret.key == first.key
    assert (await admin.RotateSecret(pb.RotateSecretRequest())).secret.key != first.key
    other = hooks(mesh, "other", ("admin",))
    assert (await other.GetSecret(pb.GetSecretRequest())).secret.key != first.key
    for method, request in (
        (hooks(mesh).GetSecret, pb.GetSecretRequest()),
        (hooks(mesh).RotateSecret, pb.RotateSecretRequest()),
    ):
        with pytest.raises(MeshError) as caught:
            await method(request)
        assert caught.value.kind is ErrorKind.FORBIDDEN


async def test_a_service_hands_its_events_in_once(mesh: Mesh) -> None:
    service = hooks(mesh, "", ("mesh",))
    entity, event_id = str(uuid4()), str(uuid4())
    event = events_pb2.BaseEvent(
        event_type=events_pb2.EVENT_TYPE_WORKFLOW_STATUS_UPDATE,
        task_id=entity,
        status="COMPLETED",
        timestamp=Timestamp(seconds=1_800_000_000),
    )
    async with receiving() as receiver:
        request = pb.EnqueueRequest(
            event_id=event_id, entity_id=entity, entity_version=7, url=receiver.url, event=packed(event)
        )
        for _ in range(2):
            await service.Enqueue(request, metadata=call_metadata(tenant="acme"))
        await send(mesh, 2)
        await service.Enqueue(request, metadata=call_metadata(tenant="acme"))
        await send(mesh)
        assert receiver.ids == [event_id]
        assert receiver.bodies[0]["event_type"] == "workflow_status_update"
        assert receiver.bodies[0]["timestamp"] == "2027-01-15T08:00:00.000Z"
    [seen] = (await hooks(mesh).ListDeliveries(pb.ListDeliveriesRequest())).deliveries
    assert (seen.id, seen.entity_id, seen.entity_version, seen.tenant_id) == (event_id, entity, 7, "acme")


@pytest.fixture
def recorded() -> Iterator[list[Span]]:
    found: list[Span] = []
    spans.record_with(found.append)
    yield found
    spans.record_with(None)


async def test_a_webhook_of_another_service_is_recorded_under_the_trace_that_it_brings(
    mesh: Mesh, recorded: list[Span]
) -> None:
    event = events_pb2.BaseEvent(event_type=events_pb2.EVENT_TYPE_WORKFLOW_STATUS_UPDATE, status="COMPLETED")
    traced, untraced = str(uuid4()), str(uuid4())
    async with receiving() as receiver:
        for event_id, traceparent in ((traced, f"00-{'a' * 32}-{'b' * 16}-01"), (untraced, "")):
            request = pb.EnqueueRequest(
                event_id=event_id,
                entity_id=str(uuid4()),
                url=receiver.url,
                event=packed(event),
                traceparent=traceparent,
            )
            await hooks(mesh, "", ("mesh",)).Enqueue(request, metadata=call_metadata(tenant="acme"))
        await send(mesh, 2)
        assert sorted(receiver.ids) == sorted([traced, untraced])
    [sent] = [one for one in recorded if one.name == "webhook"]
    assert (sent.trace_id, sent.attributes["messaging.message.id"]) == ("a" * 32, traced)


@pytest.mark.parametrize(
    ("change", "path"),
    [
        ({"url": "http://10.0.0.1/hook"}, "url"),
        ({"url": "ftp://example.com/hook"}, "url"),
        ({"event": packed(Timestamp())}, "event"),
        ({"event": packed(events_pb2.TaskProgressEvent())}, "event"),
        ({"event": packed(events_pb2.BaseEvent())}, "event"),
        ({"event": AnyMessage(type_url="x/atelier.events.v1.BaseEvent", value=b"\xff")}, "event"),
    ],
    ids=str,
)
async def test_what_cannot_be_delivered_is_not_taken(mesh: Mesh, change: dict[str, Any], path: str) -> None:
    event = packed(events_pb2.BaseEvent(event_type=events_pb2.EVENT_TYPE_WORKFLOW_STATUS_UPDATE))
    values: dict[str, Any] = {
        "event_id": str(uuid4()),
        "entity_id": str(uuid4()),
        "url": "https://example.com/a",
        "event": event,
    }
    with pytest.raises(MeshError) as caught:
        await hooks(mesh, "", ("mesh",)).Enqueue(
            pb.EnqueueRequest(**values | change), metadata=call_metadata(tenant="acme")
        )
    assert [violation.path for violation in caught.value.violations] == [path]


async def test_only_a_service_hands_events_in(mesh: Mesh) -> None:
    with pytest.raises(MeshError) as caught:
        await hooks(mesh, scopes=("admin", "operator")).Enqueue(pb.EnqueueRequest())
    assert caught.value.kind is ErrorKind.FORBIDDEN
