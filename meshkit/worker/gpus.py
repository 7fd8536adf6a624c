"""The GPUs of a worker's machine, as NVIDIA's driver tells of them (NVML).

A driver that hangs must not hold heartbeats up: a thread asks it, and a heartbeat tells what the one before has had
asked.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

from atelier.tasks.v1.worker_service_pb2 import GpuReading

# As many as a heartbeat may name.
_MOST_GPUS = 64


def load_nvml() -> Any:
    """Return the module of the driver's functions; on a machine without the driver its `nvmlInit` says so."""
    import pynvml  # noqa: PLC0415 -- large, and read by the thread that asks

    return pynvml


class GpuGauge:
    """Tells of the GPUs.

    Args:
        load: Returns the module `pynvml`; called once, in the thread that asks.
    """

    def __init__(self, load: Callable[[], Any] = load_nvml) -> None:
        self._load = load
        self._nvml: Any = None
        self._asking: threading.Thread | None = None
        self._begun = self._absent = False
        self._readings: Sequence[GpuReading] = ()

    def read(self) -> Sequence[GpuReading]:
        """Return what was told last, and ask anew; never waits."""
        if not self._absent and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask, name="gpus", daemon=True)
            self._asking.start()
        return self._readings

    def wait(self, seconds: float) -> None:
        """Wait until the question that was asked last is answered."""
        if self._asking is not None:
            self._asking.join(seconds)

    def _ask(self) -> None:
        if self._nvml is None:
            self._nvml = self._load()
        nvml = self._nvml
        try:
            if not self._begun:
                nvml.nvmlInit()
                self._begun = True
            found = [_reading(nvml, index) for index in range(min(nvml.nvmlDeviceGetCount(), _MOST_GPUS))]
        except nvml.NVMLError_LibraryNotFound:
            self._absent = True
        except nvml.NVMLError:
            self._readings = ()
        else:
            self._readings = [one for one in found if one is not None]


def _reading(nvml: Any, index: int) -> GpuReading | None:
    try:
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        reading = GpuReading(uuid=nvml.nvmlDeviceGetUUID(handle), name=nvml.nvmlDeviceGetName(handle))
    except nvml.NVMLError:
        return None
    # A card without a sensor, or a part of one (MIG), refuses one or the other.
    with contextlib.suppress(nvml.NVMLError):
        reading.utilization = nvml.nvmlDeviceGetUtilizationRates(handle).gpu
    with contextlib.suppress(nvml.NVMLError):
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        reading.used_bytes, reading.total_bytes = memory.used, memory.total
    with contextlib.suppress(nvml.NVMLError):
        reading.temperature = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
    with contextlib.suppress(nvml.NVMLError):
        reading.power_watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
    return reading
