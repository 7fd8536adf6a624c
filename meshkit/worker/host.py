"""A worker put together from what it runs: queues, pairs, handlers, slots.

Work that shares slots is a pool: one runner, one session with the tasks service, one set of attempts. A worker has a
pool for its device, where it has one, and a pool for each queue whose work waits on somebody else's service, so that
slow calls of one queue never take the slots of another.

Open a host, add its pools, serve gRPC, and start the host.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass

from meshkit import auth
from meshkit.bus import Bus
from meshkit.channel import MeshChannel
from meshkit.children import environment_without_secrets
from meshkit.client import WorkerClient
from meshkit.fetcher import Fetcher
from meshkit.health import HealthPart, PartStates
from meshkit.images.checks import ImageChecks
from meshkit.logging import get_logger
from meshkit.loops import cancel
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore
from meshkit.worker import metrics
from meshkit.worker.attempts import Attempts
from meshkit.worker.call_runner import CallRunner
from meshkit.worker.cancel_listener import CancelListener
from meshkit.worker.changes import Changes
from meshkit.worker.config import WorkerSettings
from meshkit.worker.device_runner import DeviceRunner
from meshkit.worker.ends import AttemptEnds
from meshkit.worker.folders import AttemptFolders
from meshkit.worker.handlers import CallHandler, TaskHandler
from meshkit.worker.held import HeldLeases
from meshkit.worker.input_places import InputPlaces
from meshkit.worker.inputs import Inputs
from meshkit.worker.leases import LeaseClient
from meshkit.worker.lora_cache import LoraCache
from meshkit.worker.one_lease import OneLease
from meshkit.worker.pacing import Pauses
from meshkit.worker.pairs import Pair
from meshkit.worker.preparer import JobPreparer
from meshkit.worker.request_notes import RequestNotes
from meshkit.worker.runner import Runner
from meshkit.worker.session import SessionProfile
from meshkit.worker.supervisor import ChildSupervisor

_log = get_logger(__name__)

_BUS_CONNECT_SECONDS = 0.5
_POLL_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class DeviceWork:
    """Work that runs on the device, in a child process.

    Attributes:
        queues: Queues that it comes from.
        handlers: One handler a pair; their `inputs` and `batch_key` are called here, the rest in the child.
        command: The child's command.
        environment: What the child gets beside this process's environment.
    """

    queues: tuple[str, ...]
    handlers: Mapping[Pair, TaskHandler]
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class CallWork:
    """Work that waits on somebody else's service.

    Attributes:
        queue: Queue that it comes from.
        handlers: One handler a pair.
        slots: Calls at once.
        kind: What sessions call the worker: `provider`, or `local` where it does the work on this machine.
        pausable: Whether the handlers stop where another attempt can go on, when they are asked to.
        one_within: Seconds that one lease is waited for, the only one that is taken; None takes them for ever.
        probe: Tells why the handlers cannot work here, empty where they can; asked once one has found so.
    """

    queue: str
    handlers: Mapping[Pair, CallHandler]
    slots: int
    kind: str = "provider"
    pausable: bool = False
    one_within: float | None = None
    probe: Callable[[], Awaitable[str]] | None = None


@dataclass(frozen=True, slots=True)
class Pool:
    """Work that shares slots.

    Attributes:
        runner: Executes it.
        preparer: Makes jobs of tasks.
        attempts: The attempts that are under way.
        leases: The session that they come from.
        one: Where it takes one lease alone: when that is over.
    """

    runner: Runner
    preparer: JobPreparer
    attempts: Attempts
    leases: LeaseClient
    one: OneLease | None = None

    async def drain(self, grace_seconds: float) -> None:
        """Take no more, let what runs end, hand back the rest."""
        self.leases.drain()
        await self.attempts.drain(grace_seconds)


@dataclass(frozen=True, slots=True)
class DevicePool:
    """The pool of the device, and what direct calls of it need.

    Attributes:
        pool: The pool.
        runner: Its runner.
        supervisor: Keeps the child.
    """

    pool: Pool
    runner: DeviceRunner
    supervisor: ChildSupervisor


@dataclass(frozen=True, slots=True)
class _Connections:
    """What pools share."""

    objects: ObjectStore
    bus: Bus
    client: WorkerClient
    checks: ImageChecks
    inputs: Inputs
    folders: AttemptFolders


class WorkerHost:
    """A worker: its pools, and what they share.

    Args:
        settings: Where its services are, and its limits.
        stack: Ends what is started here.
        connections: What its pools share.
        tokens: Makes the worker's own token.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        stack: AsyncExitStack,
        connections: _Connections,
        tokens: Callable[[], str] | None,
    ) -> None:
        self._settings = settings
        self._stack = stack
        self._tokens = tokens
        self._shared = connections
        self._changes = Changes()
        self._pools: list[Pool] = []
        self._listeners: list[CancelListener] = []

    @classmethod
    def open(cls, settings: WorkerSettings, queues: Sequence[str], stack: AsyncExitStack) -> WorkerHost:
        """Open what all pools share: the object store, the bus, the channel to the tasks service.

        Args:
            settings: Where its services are, and its limits.
            queues: All queues of the worker; its own token is bound to them.
            stack: Closes it.
        """
        page = serve_metrics(settings.metrics_port, settings.metrics_host)
        if page is not None:
            stack.callback(page.close)
        folders = AttemptFolders.open(settings.data / "attempts")
        stack.callback(folders.close)
        objects = ObjectStore.from_settings(settings)
        stack.push_async_callback(objects.close)
        bus = Bus(settings.nats_url.get_secret_value(), replicas=settings.nats_replicas)
        stack.push_async_callback(bus.close)
        tokens = _tokens(settings, queues)
        channel = MeshChannel.from_settings(settings, settings.tasks_address, tokens)
        stack.push_async_callback(channel.close)
        loras = LoraCache(
            objects,
            settings.data / "loras",
            max_bytes=settings.lora_cache_bytes,
            max_file_bytes=settings.max_lora_bytes,
            shared_tenant=settings.shared_tenant,
        )
        checks = ImageChecks.from_settings(settings)
        stack.push_async_callback(checks.close)
        inputs = Inputs(
            objects,
            Fetcher.from_settings(settings),
            loras,
            checks,
            max_bytes=settings.max_input_bytes,
            timeout_seconds=settings.input_timeout_seconds,
        )
        return cls(settings, stack, _Connections(objects, bus, WorkerClient(channel), checks, inputs, folders), tokens)

    @property
    def parts(self) -> PartStates:
        """What it stands on, for health checks; direct calls need neither."""
        shared = self._shared
        return PartStates(
            [
                HealthPart("object_store", shared.objects.ping, essential=False),
                HealthPart("nats", shared.bus.ping, essential=False),
            ]
        )

    @property
    def bus(self) -> Bus:
        """What carries messages between processes."""
        return self._shared.bus

    @property
    def objects(self) -> ObjectStore:
        """The object store."""
        return self._shared.objects

    @property
    def inputs(self) -> Inputs:
        """What brings inputs in."""
        return self._shared.inputs

    def channel_to(self, address: str) -> MeshChannel:
        """Open a channel to another service, which the worker calls by its own token."""
        settings = self._settings
        channel = MeshChannel.from_settings(settings, address, self._tokens)
        self._stack.push_async_callback(channel.close)
        return channel

    @property
    def checks(self) -> ImageChecks:
        """What judges pictures."""
        return self._shared.checks

    def run_device(self, work: DeviceWork) -> DevicePool:
        """Add the pool of the device, and start its child; nothing is leased before `start`."""
        settings, room = self._settings, asyncio.Event()
        supervisor = ChildSupervisor(
            work.command,
            limits=settings.limits,
            environment=environment_without_secrets(work.environment),
            on_change=self._changes,
            on_lost=lambda cause: metrics.CHILD_LOSSES.labels(cause).inc(),
        )
        runner = DeviceRunner(
            supervisor,
            slots=settings.worker_slots,
            max_batch=settings.worker_max_batch,
            batch_wait_seconds=settings.worker_batch_wait_ms / 1000,
            room=room,
        )
        self._changes.subscribe(runner.pump)
        self._changes.subscribe(room.set)
        metrics.MODEL_BYTES.set_function(lambda: sum(model.bytes for model in supervisor.resident.models))
        batch_keys = {pair: handler.batch_key for pair, handler in work.handlers.items()}
        preparer = JobPreparer(work.handlers, self._shared.inputs, self._shared.folders, batch_keys)
        profile = SessionProfile(settings.name, "local", work.queues, runner.slots, tuple(work.handlers))
        return DevicePool(self._pool(profile, runner, preparer, room, prefetch=settings.prefetch), runner, supervisor)

    def run_calls(self, work: CallWork) -> Pool:
        """Add a pool of calls; nothing is leased before `start`."""
        room = asyncio.Event()
        runner = CallRunner(
            work.handlers,
            slots=work.slots,
            room=room,
            pausable=work.pausable,
            probe=work.probe,
            on_change=self._changes,
        )
        preparer = JobPreparer(work.handlers, self._shared.inputs, self._shared.folders)
        name = f"{self._settings.name}/{work.queue}"
        profile = SessionProfile(name, work.kind, (work.queue,), runner.slots, tuple(work.handlers))
        return self._pool(profile, runner, preparer, room, prefetch=0, one_within=work.one_within)

    async def start(self, set_health: Callable[[bool], Awaitable[None]]) -> None:
        """Begin to lease.

        Args:
            set_health: Told of each change of the worker's health.
        """
        pools = tuple(self._pools)
        metrics.SLOTS.set(sum(pool.runner.slots for pool in pools))
        metrics.SLOTS_BUSY.set_function(lambda: sum(pool.runner.busy for pool in pools))
        metrics.HELD.set_function(lambda: sum(len(pool.attempts) for pool in pools))
        metrics.FETCHING.set_function(lambda: sum(pool.attempts.fetching for pool in pools))
        metrics.SESSION.set_function(lambda: sum(pool.leases.session is not None for pool in pools))
        await self._shared.bus.connect(_BUS_CONNECT_SECONDS)
        bodies = [listener.run() for listener in self._listeners]
        for body in (*bodies, self._follow_health(set_health)):
            self._stack.push_async_callback(cancel, [asyncio.ensure_future(body)])
        for pool in pools:
            pool.leases.start()

    async def drain(self, grace_seconds: float) -> None:
        """Take no more work, let what runs end within the grace, hand back the rest."""
        await asyncio.gather(*(pool.drain(grace_seconds) for pool in self._pools))

    def _pool(
        self,
        profile: SessionProfile,
        runner: Runner,
        preparer: JobPreparer,
        room: asyncio.Event,
        *,
        prefetch: int,
        one_within: float | None = None,
    ) -> Pool:
        shared, pauses, heartbeat_now = self._shared, Pauses(), asyncio.Event()
        held = HeldLeases(room)
        ends = AttemptEnds(shared.client, held, pauses)
        places = InputPlaces(self._settings.worker_fetches, self._settings.worker_fetches_per_tenant)
        attempts = Attempts(
            preparer,
            runner,
            shared.objects,
            held,
            ends,
            room=room,
            prefetch=prefetch,
            places=places,
            notes=RequestNotes(shared.client, pauses),
        )
        one = None if one_within is None else OneLease(attempts, one_within)
        taker = one or attempts
        listener = CancelListener(shared.bus, heartbeat_now.set)
        leases = LeaseClient(
            shared.client,
            profile,
            held,
            ends,
            capacity=taker.capacity,
            accept=taker.accept,
            room=room,
            heartbeat_now=heartbeat_now,
            warm=runner.warm,
            full_tenants=attempts.full_tenants,
            fault=lambda: runner.fault,
            on_session=listener.follow,
            on_empty=one.empty if one else lambda: None,
            # An answer within the time that one lease is waited for.
            poll_seconds=_POLL_SECONDS if one_within is None else min(one_within, _POLL_SECONDS),
            pauses=pauses,
        )
        pool = Pool(runner, preparer, attempts, leases, one)
        self._pools.append(pool)
        self._listeners.append(listener)
        runner.start()  # a child imports torch for seconds; nothing waits for it
        self._stack.push_async_callback(runner.close)
        self._stack.push_async_callback(leases.close)
        return pool

    async def _follow_health(self, set_health: Callable[[bool], Awaitable[None]]) -> None:
        """Pass the health of runners on, and hand back what waits for one that does not come up."""
        changed, healthy = asyncio.Event(), True
        self._changes.subscribe(changed.set)
        while True:
            now = all(pool.runner.healthy for pool in self._pools)
            if now is not healthy:
                healthy = now
                faults = [pool.runner.fault for pool in self._pools if not pool.runner.healthy]
                _log.warning("health_changed", healthy=healthy, faults=faults)
                await set_health(healthy)
            for pool in self._pools:
                if not pool.runner.healthy:
                    # Other workers may be able to; here it would wait for a child that does not come up.
                    pool.leases.recall()
                    pool.attempts.hand_back_waiting()
            await changed.wait()
            changed.clear()


def _tokens(settings: WorkerSettings, queues: Sequence[str]) -> Callable[[], str] | None:
    if settings.worker_token is not None:
        return settings.worker_token.get_secret_value
    if settings.auth_secret is None:
        return None
    return auth.ServiceTokens.from_settings(
        settings, f"worker/{settings.name}", (auth.WORKER,), queues=tuple(queues)
    ).token
