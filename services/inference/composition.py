"""The worker put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

import asyncio
import os
from contextlib import AsyncExitStack
from dataclasses import dataclass

from atelier.inference.v1.inference_service_pb2_grpc import add_InferenceServiceServicer_to_server

from meshkit.server import AddServicer, build_server
from meshkit.topology import INFERENCE
from meshkit.worker.host import DevicePool, DeviceWork, WorkerHost
from services.inference.child import ChildSettings
from services.inference.config import InferenceSettings
from services.inference.providers import LOCAL, load_calls, queues_of
from services.inference.providers.kit import ProviderKit
from services.inference.providers.wakes import ProviderWakes
from services.inference.servicer import InferenceServicer
from services.inference.tasktypes import load_pairs, parse_types

# The child's log is lines of JSON; these libraries would print advice between them.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
# OpenMP's threads (libgomp's) look for more work so many times before they sleep. Its own 300,000 keep a processor busy
# for 8 ms after each picture, which is when its result is stored and told of; this outlasts the gaps within a picture.
_SPIN = {"GOMP_SPINCOUNT": "30000"}


@dataclass(frozen=True, slots=True)
class InferenceRuntime:
    """A running worker."""

    address: str


async def start(settings: InferenceSettings, stack: AsyncExitStack) -> InferenceRuntime:
    """Start the worker; the stack drains and stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    device = _device_work(settings) if LOCAL in settings.worker_providers else None
    queues = (*(() if device is None else device.queues), *queues_of(settings.worker_providers))
    worker = WorkerHost.open(settings, tuple(dict.fromkeys(queues)), stack)
    wakes = ProviderWakes(worker.bus.notify)
    kit = ProviderKit.from_settings(settings, worker.checks, stack, wakes)
    for work in load_calls(settings.worker_providers, settings.worker_calls, kit):
        worker.run_calls(work)
    servicers = [] if device is None else [_direct(settings, device, worker.run_device(device))]
    server = build_server(settings, INFERENCE, servicers, worker.parts)

    async def set_health(healthy: bool) -> None:  # noqa: FBT001 -- the state itself
        for name in ("", *server.services):
            await server.set_health(name, serving=healthy)

    async def stop() -> None:
        grace = settings.shutdown_grace_seconds
        await asyncio.gather(worker.drain(grace), server.stop(grace))

    await server.start()
    if settings.fal_webhook_url:
        from services.inference.providers.fal_webhooks import open_fal_door  # noqa: PLC0415 -- few workers have a door

        await open_fal_door(settings, wakes, worker.bus, stack)
    await worker.start(set_health)
    stack.push_async_callback(stop)
    return InferenceRuntime(server.address)


def _direct(settings: InferenceSettings, work: DeviceWork, pool: DevicePool) -> tuple[AddServicer, InferenceServicer]:
    """Return the service that runs tasks on the device without a queue."""
    servicer = InferenceServicer(name=settings.name, queues=work.queues, pairs=tuple(work.handlers), device=pool)
    return add_InferenceServiceServicer_to_server, servicer


def _device_work(settings: InferenceSettings) -> DeviceWork:
    types = parse_types(settings.worker_task_types)
    child = ChildSettings(
        task_types=types,
        threads=settings.worker_slots,
        model=settings.default_model,
        device=settings.device,
        model_budget_bytes=settings.model_budget_bytes,
        torch_threads=settings.torch_threads,
        extra_models=(
            *settings.extra_models,
            *(f"{name}={path}" for name, path in settings.cutout_models.items()),
            *(f"{name}={path}" for name, path in settings.consistency_networks.items()),
        ),
        model_download=settings.model_download,
        family_defaults=settings.family_defaults,
        content_threshold=settings.content_threshold,
        notes=settings.picture_notes,
        log_level=settings.log_level,
    )
    spin = {} if "OMP_WAIT_POLICY" in os.environ else _SPIN  # who sets that has said how threads wait
    pairs = load_pairs(types, pipelines=settings.ultimate_editor == LOCAL)
    return DeviceWork(settings.worker_queues, pairs, child.command(), {**_QUIET, **spin})
