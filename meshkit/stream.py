"""The stream of events on JetStream: what it keeps, from which number, and the headers of an event."""

from __future__ import annotations

import time
from collections.abc import Sequence

from nats.js import JetStreamContext, api
from nats.js import errors as js_errors

VERSION_HEADER = "Atelier-Version"
TENANT_HEADER = "Atelier-Tenant"
EVENT_TYPE_HEADER = "Atelier-Event-Type"

RETENTION_SECONDS = 7 * 24 * 3600.0
DUPLICATE_WINDOW_SECONDS = 600.0
MAX_STREAM_BYTES = 1024**3


def stream_config(name: str, subjects: Sequence[str], replicas: int) -> api.StreamConfig:
    """Return the configuration of the stream of events.

    Args:
        name: Its name.
        subjects: Its subjects.
        replicas: Copies that the NATS cluster keeps.
    """
    return api.StreamConfig(
        name=name,
        subjects=list(subjects),
        retention=api.RetentionPolicy.LIMITS,
        discard=api.DiscardPolicy.OLD,
        max_age=RETENTION_SECONDS,
        max_bytes=MAX_STREAM_BYTES,
        duplicate_window=DUPLICATE_WINDOW_SECONDS,
        num_replicas=replicas,
        storage=api.StorageType.FILE,
    )


async def ensure_stream(js: JetStreamContext, config: api.StreamConfig) -> None:
    """Make a stream where it is missing; give it the configuration where it exists.

    A new one numbers its messages from the milliseconds since 1970. A stream that was lost with NATS's disk and is made
    again so goes on above the numbers of the one before, unless that took a thousand messages a second on average: a
    number that somebody remembers names no other message.

    Args:
        js: The JetStream.
        config: The configuration.
    """
    try:
        await js.update_stream(config)
    except js_errors.NotFoundError:
        try:
            await js.add_stream(config, first_seq=time.time_ns() // 1_000_000)
        except js_errors.BadRequestError:  # another process was faster
            await js.update_stream(config)
