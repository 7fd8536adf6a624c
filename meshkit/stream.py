"""The stream of events on JetStream: what it keeps, from which number, and the headers of an event."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from nats.js import JetStreamContext, api
from nats.js import errors as js_errors

VERSION_HEADER = "Atelier-Version"
TENANT_HEADER = "Atelier-Tenant"
EVENT_TYPE_HEADER = "Atelier-Event-Type"

RETENTION_SECONDS = 7 * 24 * 3600.0
DUPLICATE_WINDOW_SECONDS = 600.0
MAX_STREAM_BYTES = 1024**3

_COMPARED = ("subjects", "retention", "discard", "max_age", "max_bytes", "duplicate_window", "storage")


def stream_config(name: str, subjects: Sequence[str], replicas: int | None) -> api.StreamConfig:
    """Return the configuration of the stream of events.

    Args:
        name: Its name.
        subjects: Its subjects.
        replicas: Copies that the NATS cluster keeps; None to leave them as they are, one where the stream is missing.
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
        await _update(js, config)
    except js_errors.NotFoundError:
        try:
            await js.add_stream(config, first_seq=time.time_ns() // 1_000_000)
        except js_errors.BadRequestError:  # another process was faster
            await _update(js, config)


async def _update(js: JetStreamContext, config: api.StreamConfig) -> None:
    if config.num_replicas is not None:
        await js.update_stream(config)
        return
    found = (await js.stream_info(str(config.name))).config
    # An update without a number of copies would set it to one. Nothing is written where nothing differs: another
    # process may change the number at this moment.
    if any(getattr(found, name) != getattr(config, name) for name in _COMPARED):
        await js.update_stream(replace(config, num_replicas=found.num_replicas))
