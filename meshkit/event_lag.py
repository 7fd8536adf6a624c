"""How late events reach their consumers."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from meshkit import metrics

if TYPE_CHECKING:
    from nats.aio.msg import Msg

_SECONDS = metrics.histogram(
    "event_lag_seconds",
    "From an event's arrival at NATS to its consumer, by the consumer",
    ("consumer",),
    metrics.WAIT_BUCKETS,
)


def observe(consumer: str, messages: Sequence[Msg]) -> None:
    """Observe events that a consumer takes up, those that come again too."""
    series, now = _SECONDS.labels(consumer), time.time()
    for message in messages:
        series.observe(max(0.0, now - message.metadata.timestamp.timestamp()))
