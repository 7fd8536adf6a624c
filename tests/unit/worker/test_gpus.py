"""GPUs as the driver tells of them."""

import ctypes
import threading
from typing import Any, cast

from meshkit.worker.gpus import GpuGauge, NvmlMemory, NvmlUtilization

NOT_SUPPORTED = 3


class Driver:
    """Two cards; the second has no sensors. A third cannot be had."""

    def __init__(self) -> None:
        self.inits = 0
        self.broken = False
        self.answers = threading.Event()
        self.answers.set()

    def nvmlInit_v2(self) -> int:
        self.inits += 1
        return 9 if self.broken else 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        assert self.answers.wait(10)
        count._obj.value = 3
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: ctypes.c_uint, handle: Any) -> int:
        handle._obj.value = index.value + 1
        return 0 if index.value < 2 else NOT_SUPPORTED

    def nvmlDeviceGetUUID(self, handle: ctypes.c_void_p, text: Any, size: ctypes.c_uint) -> int:
        assert size.value == len(text)
        text.value = f"GPU-{handle.value}".encode()
        return 0

    def nvmlDeviceGetName(self, handle: ctypes.c_void_p, text: Any, size: ctypes.c_uint) -> int:
        del handle, size
        text.value = b"NVIDIA H100"
        return 0

    def nvmlDeviceGetUtilizationRates(self, handle: ctypes.c_void_p, rates: Any) -> int:
        ctypes.pointer(rates._obj).contents.gpu = 37
        return self._first(handle)

    def nvmlDeviceGetMemoryInfo(self, handle: ctypes.c_void_p, memory: Any) -> int:
        memory._obj.used, memory._obj.total = 5, 80
        return self._first(handle)

    def nvmlDeviceGetTemperature(self, handle: ctypes.c_void_p, sensor: ctypes.c_uint, number: Any) -> int:
        assert sensor.value == 0
        number._obj.value = 61
        return self._first(handle)

    def nvmlDeviceGetPowerUsage(self, handle: ctypes.c_void_p, number: Any) -> int:
        number._obj.value = 350_500
        return self._first(handle)

    def _first(self, handle: ctypes.c_void_p) -> int:
        return 0 if handle.value == 1 else NOT_SUPPORTED


def gauge(driver: Driver) -> GpuGauge:
    return GpuGauge(cast("ctypes.CDLL", driver))


def test_a_machine_without_the_driver_has_no_gpus() -> None:
    without = GpuGauge(None)
    without.wait(1)
    assert list(without.read()) == []


def test_gpus_are_told_as_of_the_question_before() -> None:
    driver = Driver()
    gpus = gauge(driver)
    gpus.read()
    gpus.wait(10)
    first, second = gpus.read()
    assert (first.uuid, first.name, first.utilization) == ("GPU-1", "NVIDIA H100", 37)
    assert (first.used_bytes, first.total_bytes, first.temperature, first.power_watts) == (5, 80, 61, 350.5)
    assert second.uuid == "GPU-2"
    assert not any(second.HasField(name) for name in ("utilization", "used_bytes", "temperature", "power_watts"))
    gpus.wait(10)
    assert driver.inits == 1


def test_a_driver_that_hangs_holds_nobody_up_and_is_asked_once() -> None:
    driver = Driver()
    driver.answers.clear()
    gpus = gauge(driver)
    threads = threading.active_count()
    for _ in range(3):
        assert list(gpus.read()) == []
    assert threading.active_count() == threads + 1
    driver.answers.set()
    gpus.wait(10)
    assert len(gpus.read()) == 2
    gpus.wait(10)


def test_a_driver_that_does_not_begin_is_asked_again() -> None:
    driver = Driver()
    driver.broken = True
    gpus = gauge(driver)
    gpus.read()
    gpus.wait(10)
    assert list(gpus.read()) == []
    gpus.wait(10)
    driver.broken = False
    gpus.read()
    gpus.wait(10)
    assert len(gpus.read()) == 2
    gpus.wait(10)


def test_structures_have_the_layout_of_the_driver() -> None:
    assert (ctypes.sizeof(NvmlUtilization), ctypes.sizeof(NvmlMemory)) == (8, 24)
