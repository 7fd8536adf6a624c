"""The GPUs of a worker's machine, as NVIDIA's driver tells of them (NVML), without a library of its own.

The functions and structures are those of `nvml.h`. A driver that hangs must not hold heartbeats up: a thread asks it,
and a heartbeat tells what the one before has had asked.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

from atelier.tasks.v1.worker_service_pb2 import GpuReading

_LIBRARY = "libnvidia-ml.so.1"
_TEXT_BYTES = 96
_TEMPERATURE_GPU = 0
# As many as a heartbeat may name.
_MOST_GPUS = 64


class NvmlUtilization(ctypes.Structure):
    """`nvmlUtilization_t`: percent of the time."""

    _fields_ = (("gpu", ctypes.c_uint), ("memory", ctypes.c_uint))


class NvmlMemory(ctypes.Structure):
    """`nvmlMemory_t`: bytes."""

    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


def nvml() -> ctypes.CDLL | None:
    """Return the driver's library; None on a machine without it."""
    try:
        return ctypes.CDLL(_LIBRARY)
    except OSError:
        return None


class GpuGauge:
    """Tells of the GPUs.

    Args:
        library: The driver's library; None where there is none.
    """

    def __init__(self, library: ctypes.CDLL | None) -> None:
        self._library = library
        self._asking: threading.Thread | None = None
        self._begun = False
        self._readings: Sequence[GpuReading] = ()

    def read(self) -> Sequence[GpuReading]:
        """Return what was told last, and ask anew; never waits."""
        if self._library is not None and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, args=(self._library,), name="gpus", daemon=True)
            self._asking.start()
        return self._readings

    def wait(self, seconds: float) -> None:
        """Wait until the question that was asked last is answered."""
        if self._asking is not None:
            self._asking.join(seconds)

    def _ask(self, library: ctypes.CDLL) -> None:
        if not self._begun:
            self._begun = library.nvmlInit_v2() == 0
        count = ctypes.c_uint()
        if not self._begun or library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
            self._readings = ()
            return
        found = [_reading(library, index) for index in range(min(count.value, _MOST_GPUS))]
        self._readings = [one for one in found if one is not None]


def _reading(library: ctypes.CDLL, index: int) -> GpuReading | None:
    handle, uuid, name = ctypes.c_void_p(), _buffer(), _buffer()
    if library.nvmlDeviceGetHandleByIndex_v2(ctypes.c_uint(index), ctypes.byref(handle)) != 0:
        return None
    size = ctypes.c_uint(_TEXT_BYTES)
    if library.nvmlDeviceGetUUID(handle, uuid, size) != 0 or library.nvmlDeviceGetName(handle, name, size) != 0:
        return None
    reading = GpuReading(uuid=_text(uuid), name=_text(name))
    rates, memory, number = NvmlUtilization(), NvmlMemory(), ctypes.c_uint()
    # A card without a sensor, or a part of one (MIG), refuses one or the other.
    if library.nvmlDeviceGetUtilizationRates(handle, ctypes.byref(rates)) == 0:
        reading.utilization = rates.gpu
    if library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0:
        reading.used_bytes, reading.total_bytes = memory.used, memory.total
    if library.nvmlDeviceGetTemperature(handle, ctypes.c_uint(_TEMPERATURE_GPU), ctypes.byref(number)) == 0:
        reading.temperature = number.value
    if library.nvmlDeviceGetPowerUsage(handle, ctypes.byref(number)) == 0:
        reading.power_watts = number.value / 1000
    return reading


def _buffer() -> ctypes.Array[ctypes.c_char]:
    return ctypes.create_string_buffer(_TEXT_BYTES)


def _text(buffer: ctypes.Array[ctypes.c_char]) -> str:
    return buffer.value.decode("utf-8", "replace")
