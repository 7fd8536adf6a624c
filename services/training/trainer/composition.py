"""The trainer put together: what `__main__` runs and what the tests start."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass

from meshkit.children import environment_without_secrets
from meshkit.server import build_server
from meshkit.topology import TRAINER
from meshkit.worker import metrics
from meshkit.worker.host import CallWork, WorkerHost
from meshkit.worker.job_process import JobProcess
from meshkit.worker.one_lease import OneLease
from meshkit.worker.pairs import TRAINING
from services.training.trainer.attempt import TrainerTools
from services.training.trainer.base_models import TrainableModels
from services.training.trainer.config import QUEUE, TrainerSettings
from services.training.trainer.dataset.caption_service import CaptionService
from services.training.trainer.handler import TrainingHandler
from services.training.trainer.service_calls import TrainerCalls

# The child's log is lines of JSON; these libraries would print advice between them.
_QUIET = {"TRANSFORMERS_VERBOSITY": "error", "DIFFUSERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_CHILD = "services.training.trainer.child"


@dataclass(frozen=True, slots=True)
class TrainerRuntime:
    """A running trainer.

    Attributes:
        address: Where it answers.
        one: Where it works on one training alone: when that is over.
    """

    address: str
    one: OneLease | None

    async def over(self) -> None:
        """Wait until it has nothing more to do, which is never but where it works on one training alone."""
        await (self.one.over() if self.one is not None else asyncio.Event().wait())


async def start(settings: TrainerSettings, stack: AsyncExitStack) -> TrainerRuntime:
    """Start the trainer; the stack drains and stops it.

    Args:
        settings: Its settings.
        stack: Closed in reverse order at the end.
    """
    worker = WorkerHost.open(settings, (QUEUE,), stack)
    command = child_command(settings)
    environment = environment_without_secrets(_QUIET)

    def process() -> JobProcess:
        return JobProcess(
            command,
            limits=settings.limits,
            environment=environment,
            on_lost=lambda cause: metrics.CHILD_LOSSES.labels(cause).inc(),
        )

    captions = CaptionService.from_settings(settings)
    if captions is not None:
        stack.push_async_callback(captions.close)
    tools = TrainerTools(
        settings=settings,
        calls=TrainerCalls(worker.channel_to(settings.training_address)),
        objects=worker.objects,
        inputs=worker.inputs,
        models=TrainableModels(settings.places, allow_download=settings.model_download),
        captions=captions,
        process=process,
    )
    # One slot: a training takes the whole device.
    one_within = settings.trainer_one_job_wait_seconds if settings.trainer_one_job else None
    handlers = {TRAINING: TrainingHandler(tools)}
    pool = worker.run_calls(
        CallWork(
            QUEUE,
            handlers,
            slots=1,
            kind="local",
            pausable=True,
            one_within=one_within,
            probe=lambda: process().probe(),
        )
    )
    server = build_server(settings, TRAINER, [], worker.parts)

    async def set_health(healthy: bool) -> None:  # noqa: FBT001 -- the state itself
        await server.set_health("", serving=healthy)

    async def stop() -> None:
        grace = settings.shutdown_grace_seconds
        await asyncio.gather(worker.drain(grace), server.stop(grace))

    await server.start()
    await worker.start(set_health)
    stack.push_async_callback(stop)
    return TrainerRuntime(server.address, pool.one)


def child_command(settings: TrainerSettings) -> list[str]:
    """Return the command of the process that trains, to which its supervisor adds a socket."""
    return [
        *(sys.executable, "-m", _CHILD),
        *("--device", settings.trainer_device or settings.device),
        *("--threads", str(settings.torch_threads)),
        *("--log-level", settings.log_level),
    ]
