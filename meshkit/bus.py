"""Messages over NATS: JetStream for events, core NATS for wake-ups and progress.

PostgreSQL is the truth; nothing is lost when NATS is down, restarted or emptied, it only comes later. So a `Bus` never
fails to start, goes on reconnecting without end, and makes the stream and its consumers again when they are gone.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.js import JetStreamContext, api
from nats.js import errors as js_errors

from meshkit import event_lag
from meshkit.errors import unavailable
from meshkit.holding import kept
from meshkit.logging import get_logger
from meshkit.loops import cancel
from meshkit.publishing import Outgoing, Publisher, PublishOutcome
from meshkit.stream import ensure_stream, stream_config

_log = get_logger(__name__)

STREAM = "ATELIER_EVENTS"
SUBJECTS = ("atelier.*.v1.>",)
MSG_ID = "Nats-Msg-Id"
PUBLISH_TIMEOUT_SECONDS = 2.0

_CONNECT_TIMEOUT_SECONDS = 2.0
_FIRST_PAUSE_SECONDS = 0.2
_PING_SECONDS = 1
_FETCH_BATCH = 32
_NAK_DELAY_SECONDS = 2.0
# A process that stands still is handed messages for as long as its last fetch lasts, and keeps each for as long as its
# acknowledgement is waited for; then another process gets them. One that is at work extends that. A fetch may keep a
# message until its end, so it is well shorter than the wait.
FETCH_TIMEOUT_SECONDS = 2.0
ACK_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class BusMessage:
    """A message as a consumer sees it.

    Attributes:
        subject: Subject it was published to.
        data: Its payload.
        headers: Its headers; the event's id is `Nats-Msg-Id`.
        deliveries: How often it was handed out, this time included; 1 for core NATS.
    """

    subject: str
    data: bytes
    headers: Mapping[str, str]
    deliveries: int = 1


Handler = Callable[[BusMessage], Awaitable[None]]
BatchHandler = Callable[[Sequence[BusMessage]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class _Consumer:
    """What a consumer consumes, and what is done with each fetch."""

    durable: str
    subjects: list[str]
    handle: Callable[[Sequence[Msg]], Awaitable[None]]
    on_made: Callable[[], None] | None = None


class Bus:
    """The connection to NATS.

    Args:
        url: `nats://user:password@host:port`; several separated by commas; empty for a mesh without NATS.
        name: What the server calls the connection.
        stream: Name of the stream of events.
        subjects: Its subjects.
        replicas: Copies that the NATS cluster keeps; None to leave them as they are.
    """

    def __init__(
        self,
        url: str,
        *,
        name: str = "atelier",
        stream: str = STREAM,
        subjects: Sequence[str] = SUBJECTS,
        replicas: int | None = None,
    ) -> None:
        self._servers = [part.strip() for part in url.split(",") if part.strip()]
        self._name = name
        self._stream = stream
        self._subjects = list(subjects)
        self._replicas = replicas
        self._client: Client | None = None
        self._js: JetStreamContext | None = None
        self._publisher: Publisher | None = None
        self._connector: asyncio.Task[None] | None = None
        self._consumers: list[asyncio.Task[None]] = []
        self._subscriptions: list[BusSubscription] = []
        self._connected = asyncio.Event()
        self._ensure_lock = asyncio.Lock()
        self._notifications: set[asyncio.Future[None]] = set()
        self._closed = False
        self._stores = True  # whether the stream took any of the events that were published last

    @property
    def connected(self) -> bool:
        """Whether NATS answers right now."""
        return self._client is not None and self._client.is_connected

    async def events(self) -> tuple[Client, JetStreamContext, str]:
        """Return the connection, once there is one, its JetStream, and the stream of events, which is made if missing.

        Raises:
            Exception: What nats-py raises where the stream cannot be made.
        """
        await self._connected.wait()
        await self.ensure_stream()
        assert self._client is not None
        assert self._js is not None
        return self._client, self._js, self._stream

    @property
    def server_version(self) -> str:
        """Version of the NATS server; empty without a connection."""
        if self._client is None or not self._client.is_connected:
            return ""
        version = self._client.connected_server_version
        return f"{version.major}.{version.minor}.{version.patch}"

    async def ping(self) -> None:
        """Ask NATS for an answer.

        Raises:
            MeshError: `UNAVAILABLE` where there is none, or where its stream takes no events.
        """
        client = self._client
        if client is None or not client.is_connected:
            raise unavailable("NATS is not reachable", reason="NATS_UNAVAILABLE")
        await client.flush(timeout=_PING_SECONDS)
        if not self._stores:
            raise unavailable("NATS stores no events", reason="NATS_UNAVAILABLE")

    async def connect(self, wait_seconds: float = 2.0) -> None:
        """Start to connect, and go on in the background until `close`.

        Args:
            wait_seconds: How long to wait for the first connection before going on without.
        """
        if self._connector is not None or not self._servers:
            return
        self._connector = asyncio.create_task(self._connect_for_ever(), name="bus-connect")
        try:
            await asyncio.wait_for(self._connected.wait(), wait_seconds)
        except TimeoutError:
            _log.warning("nats_unreachable")

    async def close(self) -> None:
        """End consumers and the connection."""
        self._closed = True
        await cancel([*self._consumers, *([self._connector] if self._connector else [])])
        if self._client is not None:
            try:
                await asyncio.wait_for(self._client.close(), 2.0)
            except (nats_errors.Error, TimeoutError, OSError) as error:
                _log.info("nats_close_failed", cause=type(error).__name__)

    async def publish(
        self, subject: str, payload: bytes, headers: Mapping[str, str] | None = None, msg_id: str | None = None
    ) -> None:
        """Publish an event and wait until the stream has it.

        Args:
            subject: Subject within the stream's.
            payload: The event.
            headers: Further headers.
            msg_id: The event's id; the stream drops a second message of the same id.

        Raises:
            MeshError: `UNAVAILABLE` where it was not acknowledged in time.
        """
        all_headers = {**(headers or {}), **({MSG_ID: msg_id} if msg_id else {})}
        if not all(await self.publish_all([Outgoing(subject, payload, all_headers)])):
            raise unavailable("The event was not acknowledged", reason="BUS_UNAVAILABLE")

    async def publish_all(self, events: Sequence[Outgoing]) -> list[bool]:
        """Publish events in their order and wait until the stream has them.

        Args:
            events: The events; their id is the header `MSG_ID`.

        Returns:
            For each whether it was acknowledged.

        Raises:
            MeshError: `UNAVAILABLE` where there is no connection.
        """
        publisher = self._publisher
        if publisher is None or not self.connected:
            raise unavailable("NATS is not reachable", reason="BUS_UNAVAILABLE")
        answers = await publisher.publish(events)
        homeless = [index for index, answer in enumerate(answers) if answer is PublishOutcome.NO_STREAM]
        if homeless and await self._ensure_quietly():
            again = await publisher.publish([events[index] for index in homeless])
            for index, answer in zip(homeless, again, strict=True):
                answers[index] = answer
        self._stores = not answers or PublishOutcome.STORED in answers
        return [answer is PublishOutcome.STORED for answer in answers]

    def notify(self, subject: str, payload: bytes = b"") -> None:
        """Send a core NATS message; never raise, never wait.

        Args:
            subject: Subject, outside of the stream's.
            payload: The message.
        """
        client = self._client
        if client is None or not client.is_connected:
            return
        task = asyncio.ensure_future(self._notify(client, subject, payload))
        self._notifications.add(task)
        task.add_done_callback(self._notifications.discard)

    async def subscribe(self, subject: str, callback: Handler, queue: str = "") -> BusSubscription:
        """Listen on core NATS, for as long as the bus lives, across reconnects.

        Args:
            subject: Subject, wildcards allowed.
            callback: Called for each message, one after the other; what it raises is logged.
            queue: Members of the same queue share the messages.

        Returns:
            The subscription, which may be ended.
        """
        handle = BusSubscription(subject, callback, queue, self._subscriptions.remove)
        self._subscriptions.append(handle)
        if self._client is not None and not self._client.is_closed:
            await handle.attach(self._client)
        return handle

    async def consume(self, durable: str, subjects: Sequence[str], handler: Handler) -> asyncio.Task[None]:
        """Consume events durably, in a task of its own, until the bus closes or the task is cancelled.

        An event is acknowledged once the handler returned; what it raises is logged and the event comes again. The
        consumer is made again when it or the stream is lost.

        Args:
            durable: Name of the consumer, which keeps the place; processes of one name share the events.
            subjects: Subjects to consume.
            handler: Called for each event, one after the other.
        """

        async def each(messages: Sequence[Msg]) -> None:
            for message in messages:
                await _handle_together([message], lambda received: handler(received[0]))

        return self._start_consumer(_Consumer(durable, list(subjects), each))

    async def consume_batches(
        self,
        durable: str,
        subjects: Sequence[str],
        handler: BatchHandler,
        *,
        linger: float = 0.0,
        on_made: Callable[[], None] | None = None,
    ) -> asyncio.Task[None]:
        """Consume events durably as `consume` does, as many at once as there are.

        They are acknowledged together once the handler returned; where it raises, all of them come again.

        Args:
            durable: Name of the consumer, which keeps the place; processes of one name share the events.
            subjects: Subjects to consume.
            handler: Called for one batch after the other.
            linger: Seconds between two batches, for events that are not urgent: larger batches cost less.
            on_made: Called when the consumer has been made, also again after it was lost: earlier events may be gone.
        """

        async def together(messages: Sequence[Msg]) -> None:
            await _handle_together(messages, handler)
            await asyncio.sleep(linger)

        return self._start_consumer(_Consumer(durable, list(subjects), together, on_made))

    async def _connect_for_ever(self) -> None:
        pause = _FIRST_PAUSE_SECONDS
        while not self._closed:
            gone = asyncio.Event()
            try:
                client = await self._new_client(gone)
                self._client, self._js = client, client.jetstream(timeout=PUBLISH_TIMEOUT_SECONDS)
                await self._ensure_quietly()
                for subscription in self._subscriptions:
                    await subscription.attach(client)
                self._connected.set()
                pause = _FIRST_PAUSE_SECONDS
                # The client reconnects by itself, until an error that it takes for final, such as a refused password.
                await gone.wait()
            except Exception as error:
                _log.debug("nats_connection_failed", cause=type(error).__name__)
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
            pause = min(pause * 2, 5.0)

    async def _new_client(self, gone: asyncio.Event) -> Client:
        client = Client()

        async def closed() -> None:
            gone.set()

        try:
            await client.connect(
                servers=list(self._servers),
                name=self._name,
                connect_timeout=int(_CONNECT_TIMEOUT_SECONDS),
                allow_reconnect=True,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                ping_interval=10,
                max_outstanding_pings=2,
                pending_size=8 * 1024 * 1024,
                error_cb=self._on_error,
                disconnected_cb=self._on_disconnect,
                reconnected_cb=self._on_reconnect,
                closed_cb=closed,
            )
            self._publisher = Publisher(client, self._stream, PUBLISH_TIMEOUT_SECONDS)
            await self._publisher.start()
        except BaseException:
            await client.close()
            raise
        return client

    async def ensure_stream(self) -> None:
        """Make the stream of events where it is missing; give it the present configuration where it exists."""
        if self._js is None:
            raise nats_errors.ConnectionClosedError
        config = stream_config(self._stream, self._subjects, self._replicas)
        async with self._ensure_lock:
            await ensure_stream(self._js, config)

    async def _ensure_quietly(self) -> bool:
        try:
            await self.ensure_stream()
        except (nats_errors.Error, js_errors.Error, TimeoutError, OSError) as error:
            _log.warning("event_stream_not_created", cause=type(error).__name__)
            return False
        return True

    def _start_consumer(self, consumer: _Consumer) -> asyncio.Task[None]:
        task = asyncio.create_task(self._consume_for_ever(consumer), name=f"consume-{consumer.durable}")
        self._consumers.append(task)
        return task

    async def _consume_for_ever(self, consumer: _Consumer) -> None:
        while not self._closed:
            await self._connected.wait()
            try:
                await self._consume(consumer)
            except Exception as error:
                _log.info("consumer_recreated", durable=consumer.durable, cause=type(error).__name__)
                await asyncio.sleep(random.uniform(0.5, 1.5))  # noqa: S311 -- jitter, not a secret

    async def _consume(self, consumer: _Consumer) -> None:
        if self._js is None:
            raise nats_errors.ConnectionClosedError
        await self.ensure_stream()
        config = api.ConsumerConfig(
            durable_name=consumer.durable,
            filter_subjects=consumer.subjects,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=ACK_WAIT_SECONDS,
            max_ack_pending=256,
            deliver_policy=api.DeliverPolicy.ALL,
        )
        await self._js.add_consumer(self._stream, config)
        subscription = await self._js.pull_subscribe_bind(consumer.durable, self._stream)
        if consumer.on_made is not None:
            consumer.on_made()
        try:
            while True:
                await self._consume_batch(subscription, consumer)
        finally:
            try:
                await subscription.unsubscribe()
            except (nats_errors.Error, OSError):
                _log.debug("subscription_already_gone", durable=consumer.durable)

    async def _consume_batch(self, subscription: JetStreamContext.PullSubscription, consumer: _Consumer) -> None:
        try:
            messages = await subscription.fetch(_FETCH_BATCH, timeout=FETCH_TIMEOUT_SECONDS)
        except nats_errors.TimeoutError:
            # Nothing new, or the consumer is gone with the server's disk: ask the server which.
            await subscription.consumer_info()
            return
        event_lag.observe(consumer.durable, messages)
        async with kept(messages, ACK_WAIT_SECONDS):
            await consumer.handle(messages)

    async def _notify(self, client: Client, subject: str, payload: bytes) -> None:
        try:
            await client.publish(subject, payload)
        except (nats_errors.Error, OSError) as error:
            _log.debug("notification_not_sent", subject=subject, cause=type(error).__name__)

    async def _on_error(self, error: Exception) -> None:
        _log.debug("nats_error", cause=type(error).__name__)

    async def _on_disconnect(self) -> None:
        if not self._closed:
            _log.warning("nats_connection_lost")

    async def _on_reconnect(self) -> None:
        _log.info("nats_reconnected")
        await self._ensure_quietly()


class BusSubscription:
    """A subscription on core NATS, which may be asked for before the first connection and outlives each of them.

    Args:
        subject: Subject.
        callback: Called for each message.
        queue: Members of the same queue share the messages.
        forget: Told of its end.
    """

    def __init__(self, subject: str, callback: Handler, queue: str, forget: Callable[[BusSubscription], None]) -> None:
        self._subject = subject
        self._callback = callback
        self._queue = queue
        self._forget = forget
        self._client: Client | None = None
        self._subscription: Subscription | None = None
        self._ended = False

    async def attach(self, client: Client) -> None:
        """Subscribe on a connection, once; nats-py keeps that across its own reconnects."""
        if self._ended or self._client is client:
            return
        self._client = client
        try:
            self._subscription = await client.subscribe(
                self._subject, queue=self._queue, cb=_core_callback(self._callback)
            )
        except (nats_errors.Error, OSError) as error:
            # The connection is closing: the next one attaches the subscription again.
            self._client = None
            _log.debug("subscription_waiting", subject=self._subject, cause=type(error).__name__)

    async def unsubscribe(self) -> None:
        """End it; safe to call twice and without a connection."""
        if self._ended:
            return
        self._ended = True
        self._forget(self)
        if self._subscription is not None:
            try:
                await self._subscription.unsubscribe()
            except (nats_errors.Error, OSError) as error:
                _log.debug("subscription_already_gone", cause=type(error).__name__)


def _core_callback(callback: Handler) -> Callable[[Msg], Awaitable[None]]:
    async def receive(message: Msg) -> None:
        try:
            await callback(BusMessage(message.subject, message.data, message.headers or {}))
        except Exception:
            _log.exception("notification_handler_failed", subject=message.subject)

    return receive


async def _handle_together(messages: Sequence[Msg], handler: BatchHandler) -> None:
    try:
        await handler([_received(message) for message in messages])
    except Exception:
        _log.exception("event_handler_failed", subject=messages[0].subject, count=len(messages))
        for message in messages:
            await message.nak(delay=_NAK_DELAY_SECONDS)
    else:
        for message in messages:
            await message.ack()


def _received(message: Msg) -> BusMessage:
    return BusMessage(message.subject, message.data, message.headers or {}, message.metadata.num_delivered)
