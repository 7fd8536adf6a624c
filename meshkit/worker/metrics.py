"""What a worker counts and measures."""

from __future__ import annotations

from functools import cache

from meshkit import metrics

ATTEMPTS = metrics.counter("worker_attempts", "Attempts that ended.", ("task_type", "outcome"))
DEVICE_SECONDS = metrics.counter("worker_device_seconds", "Seconds the device worked.", ("task_type",))
CHILD_LOSSES = metrics.counter("worker_child_losses", "Children that were lost, by cause.", ("cause",))
SLOTS = metrics.gauge("worker_slots", "Slots of the worker.")
SLOTS_BUSY = metrics.gauge("worker_slots_busy", "Slots in use.")
HELD = metrics.gauge("worker_attempts_held", "Attempts that are leased and have not ended.")
FETCHING = metrics.gauge("worker_fetching", "Attempts that wait for inputs from addresses.")
SESSION = metrics.gauge("worker_session_open", "Sessions that are open, one for each pool of work.")
SLOT_WAIT_SECONDS = metrics.histogram(
    "worker_slot_wait_seconds", "Wait of a ready attempt for its slot.", ("task_type",)
)
MODEL_BYTES = metrics.gauge("worker_model_bytes", "Memory of resident models.")

# Each combination of labels is looked up once: the look-up costs more than the counting.
attempts = cache(ATTEMPTS.labels)
device_seconds = cache(DEVICE_SECONDS.labels)
slot_wait_seconds = cache(SLOT_WAIT_SECONDS.labels)
