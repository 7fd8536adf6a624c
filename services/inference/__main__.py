"""`python -m services.inference`: wires the worker."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from atelier.inference.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server

from meshkit import auth, lifecycle
from meshkit.bus import Bus
from meshkit.channel import MeshChannel
from meshkit.client import WorkerClient
from meshkit.config import PREFIX
from meshkit.fetcher import Fetcher
from meshkit.loops import cancel
from meshkit.metrics import serve_metrics
from meshkit.objects import ObjectStore
from meshkit.server import MeshServer
from meshkit.worker import measures
from meshkit.worker.attempts import Attempts
from meshkit.worker.cancel_listener import CancelListener
from meshkit.worker.child_health import ChildWatch, warm_state
from meshkit.worker.device_runner import DeviceRunner
from meshkit.worker.inputs import AttemptFolders, Inputs
from meshkit.worker.leases import LeaseClient
from meshkit.worker.lora_cache import LoraCache
from meshkit.worker.preparer import JobPreparer
from meshkit.worker.session import WorkerProfile
from meshkit.worker.supervisor import ChildSupervisor
from services.inference.child import ChildSettings
from services.inference.config import InferenceSettings
from services.inference.servicer import InferenceServicer
from services.inference.tasktypes import load_handlers, parse_types

_SERVICE = "atelier.inference.v1.InferenceService"
# The child's log is lines of JSON; these libraries would print advice between them.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
# OpenMP's threads (libgomp's) look for more work so many times before they sleep. Its own 300,000 keep a processor busy
# for 8 ms after each picture, which is when its result is stored and told of; this outlasts the gaps within a picture.
_SPIN = {"GOMP_SPINCOUNT": "30000"}


async def main(stack: AsyncExitStack, stop: asyncio.Event) -> None:
    """Run the worker until `stop`, then drain it."""
    settings = InferenceSettings()
    types = parse_types(settings.worker_task_types)
    handlers = load_handlers(types)
    page = serve_metrics(settings.metrics_port, settings.metrics_host)
    if page is not None:
        stack.callback(page.close)
    folders = AttemptFolders(settings.data / "attempts")
    folders.open()
    stack.callback(folders.close)
    objects = ObjectStore.from_settings(settings)
    stack.push_async_callback(objects.close)
    bus = Bus(settings.nats_url.get_secret_value())
    stack.push_async_callback(bus.close)
    channel = MeshChannel(settings.tasks_address, _tokens(settings), max_message_bytes=settings.max_message_bytes)
    stack.push_async_callback(channel.close)

    watch = ChildWatch(_SERVICE)
    child = ChildSettings(
        task_types=types,
        threads=settings.worker_slots,
        model=settings.default_model,
        device=settings.device,
        model_budget_bytes=settings.model_budget_bytes,
        torch_threads=settings.torch_threads,
        extra_models=settings.extra_models,
        model_download=settings.model_download,
        log_level=settings.log_level,
    )
    supervisor = ChildSupervisor(
        child.command(),
        limits=settings.limits,
        environment=_childs_environment(),
        on_change=watch.changed,
        on_lost=lambda cause: measures.CHILD_LOSSES.labels(cause).inc(),
    )
    stack.push_async_callback(supervisor.stop)
    executor = DeviceRunner(
        supervisor,
        slots=settings.worker_slots,
        max_batch=settings.worker_max_batch,
        batch_wait_seconds=settings.worker_batch_wait_ms / 1000,
        expected_peers=watch.expected_peers,
        on_room=watch.room,
        on_wait=lambda kind, seconds: measures.slot_wait_seconds(kind).observe(seconds),
    )
    loras = LoraCache(
        objects,
        settings.data / "loras",
        max_bytes=settings.lora_cache_bytes,
        max_file_bytes=settings.max_lora_bytes,
        shared_tenant=settings.shared_tenant,
    )
    inputs = Inputs(
        objects,
        Fetcher.from_settings(settings),
        loras,
        max_bytes=settings.max_input_bytes,
        timeout_seconds=settings.input_timeout_seconds,
    )
    preparer = JobPreparer(handlers, inputs, folders)
    attempts = Attempts(preparer, executor, objects, prefetch=settings.prefetch, ready=lambda: supervisor.ready)
    news = CancelListener(bus, watch.news)
    leases = LeaseClient(
        WorkerClient(channel),
        WorkerProfile(settings.name, "local", settings.worker_queues, settings.worker_slots, types),
        capacity=attempts.capacity,
        accept=attempts.accept,
        warm=lambda: warm_state(supervisor),
        on_session=lambda session: watch.session(session, news),
    )
    attempts.bind(leases)
    stack.push_async_callback(leases.close)
    server = MeshServer(
        settings,
        servicers=[
            (
                add_InferenceServiceServicer_to_server,
                InferenceServicer(
                    name=settings.name,
                    queues=settings.worker_queues,
                    task_types=types,
                    preparer=preparer,
                    executor=executor,
                    supervisor=supervisor,
                ),
                _SERVICE,
            )
        ],
        verifier=auth.TokenVerifier.from_settings(settings),
    )
    watch.bind(server=server, supervisor=supervisor, executor=executor, attempts=attempts, leases=leases)

    # The child imports torch for seconds; nothing below waits for it.
    supervisor.start()
    await server.start()
    await bus.connect(0.5)
    for body in (news.run, watch.run):
        _keep(stack, body)
    leases.start()
    lifecycle.announce(server.address, settings.port_file)
    await stop.wait()
    await asyncio.gather(attempts.drain(settings.shutdown_grace_seconds), server.stop(settings.shutdown_grace_seconds))


def _childs_environment() -> dict[str, str]:
    """Return this process's environment without the mesh's secrets: the child opens models and LoRAs of strangers."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    spin = {} if "OMP_WAIT_POLICY" in inherited else _SPIN  # who sets that has said how threads wait
    return {**_QUIET, **spin, **inherited}


def _tokens(settings: InferenceSettings) -> Callable[[], str] | None:
    if settings.worker_token is not None:
        return settings.worker_token.get_secret_value
    if settings.auth_secret is None:
        return None
    issuer = auth.TokenIssuer(
        settings.auth_secret.get_secret_value(), settings.auth_issuer, audience=settings.auth_audience
    )
    return auth.ServiceTokens(issuer, f"worker/{settings.name}", (auth.WORKER,), queues=settings.worker_queues).token


def _keep(stack: AsyncExitStack, body: Callable[[], Awaitable[None]]) -> None:
    """Run `body` beside the rest until the worker ends."""
    task = asyncio.ensure_future(body())

    stack.push_async_callback(cancel, [task])


if __name__ == "__main__":
    lifecycle.run(main, service="inference")
