"""Follow one training: its row, and what came since, with NATS telling when to look; without it, every second."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

from atelier.training.v1 import training_service_pb2

from meshkit.access import Caller
from meshkit.bus import Bus, BusMessage
from meshkit.media_urls import MediaLinks
from services.training.convert import to_losses, to_sample, to_training, to_validation
from services.training.domain import SampleRecord
from services.training.errors import training_not_found
from services.training.events import NOTICE_SUBJECT
from services.training.store import TrainingStore

BLIND_SECONDS = 1.0
SEEING_SECONDS = 5.0
# Between two messages: trainers tell once a second, several at the same moment.
PAUSE_SECONDS = 0.2
_POINTS = 200


class TrainingWatchers:
    """Whoever follows a training in this process.

    Args:
        store: The database.
        bus: The bus.
        links: Makes addresses of pictures; None where the mesh is not told its public address.
    """

    def __init__(self, store: TrainingStore, bus: Bus, links: MediaLinks | None) -> None:
        self._store = store
        self._bus = bus
        self._links = links

    async def watch(
        self, training_id: UUID, caller: Caller, after_version: int
    ) -> AsyncIterator[training_service_pb2.WatchTrainingResponse]:
        """Follow a training until it ends.

        Args:
            training_id: The training.
            caller: Who asks.
            after_version: States up to this one are not sent again.

        Raises:
            MeshError: `NOT_FOUND`.
        """
        record = caller.seen(await self._store.get(training_id), training_id, training_not_found)
        changed = asyncio.Event()

        async def on_notice(_: BusMessage) -> None:
            changed.set()

        subscription = await self._bus.subscribe(f"{NOTICE_SUBJECT}.{training_id}", on_notice)
        try:
            sent, told_step, validated = after_version, record.current_step, record.current_step
            pictures = {_key(one) for one in await self._store.samples(training_id)}
            while True:
                record = caller.seen(await self._store.get(training_id), training_id, training_not_found)
                if record.version > sent or record.has_ended:
                    response = training_service_pb2.WatchTrainingResponse(
                        training=to_training(record), final=record.has_ended
                    )
                    losses = await self._store.losses(training_id, told_step, _POINTS)
                    validation = await self._store.validation(training_id, validated)
                    samples = [one for one in await self._store.samples(training_id) if _key(one) not in pictures]
                    response.losses.extend(to_losses(losses))
                    response.validation.extend(to_validation(validation))
                    response.samples.extend(to_sample(one, record.tenant, self._links) for one in samples)
                    sent = record.version
                    told_step = max([told_step, *(one.step for one in losses)])
                    validated = max([validated, *(one.step for one in validation)])
                    pictures |= {_key(one) for one in samples}
                    yield response
                if record.has_ended:
                    return
                await self._wait(changed)
                changed.clear()
        finally:
            await subscription.unsubscribe()

    async def _wait(self, changed: asyncio.Event) -> None:
        await asyncio.sleep(PAUSE_SECONDS)
        try:
            async with asyncio.timeout(SEEING_SECONDS if self._bus.connected else BLIND_SECONDS):
                await changed.wait()
        except TimeoutError:
            return


def _key(sample: SampleRecord) -> tuple[int, int, str]:
    return sample.step, sample.index, sample.path
