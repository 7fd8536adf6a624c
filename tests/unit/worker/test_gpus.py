"""GPUs as the driver tells of them."""

import threading
from types import SimpleNamespace
from typing import Any

import pynvml

from meshkit.worker.gpus import GpuGauge


class Driver:
    """Stands in for the module of a machine with two cards; the second has no sensors. A third cannot be had."""

    NVMLError = pynvml.NVMLError
    NVMLError_LibraryNotFound = pynvml.NVMLError_LibraryNotFound
    NVML_TEMPERATURE_GPU = pynvml.NVML_TEMPERATURE_GPU

    def __init__(self) -> None:
        self.inits = 0
        self.broken = False
        self.answers = threading.Event()
        self.answers.set()

    def nvmlInit(self) -> None:
        self.inits += 1
        if self.broken:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_DRIVER_NOT_LOADED)

    def nvmlDeviceGetCount(self) -> int:
        assert self.answers.wait(60)
        return 3

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index == 2:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_GPU_IS_LOST)
        return index + 1

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, _handle: int) -> str:
        return "NVIDIA H100"

    def nvmlDeviceGetUtilizationRates(self, handle: int) -> Any:
        return SimpleNamespace(gpu=self._first(handle, 37), memory=3)

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:
        return SimpleNamespace(used=self._first(handle, 5), total=80)

    def nvmlDeviceGetTemperature(self, handle: int, sensor: int) -> int:
        assert sensor == 0
        return self._first(handle, 61)

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        return self._first(handle, 350_500)

    def _first(self, handle: int, value: int) -> int:
        if handle != 1:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return value


def gauge(driver: Driver) -> GpuGauge:
    return GpuGauge(lambda: driver)


def test_a_machine_without_the_driver_has_no_gpus_and_is_asked_once() -> None:
    class Without(Driver):
        def nvmlInit(self) -> None:
            self.inits += 1
            raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    driver = Without()
    without = gauge(driver)
    for _ in range(3):
        assert list(without.read()) == []
        without.wait(60)
    assert driver.inits == 1


def test_gpus_are_told_as_of_the_question_before() -> None:
    driver = Driver()
    gpus = gauge(driver)
    gpus.read()
    gpus.wait(60)
    first, second = gpus.read()
    assert (first.uuid, first.name, first.utilization) == ("GPU-1", "NVIDIA H100", 37)
    assert (first.used_bytes, first.total_bytes, first.temperature, first.power_watts) == (5, 80, 61, 350.5)
    assert second.uuid == "GPU-2"
    assert not any(second.HasField(name) for name in ("utilization", "used_bytes", "temperature", "power_watts"))
    gpus.wait(60)
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
    gpus.wait(60)
    assert len(gpus.read()) == 2
    gpus.wait(60)


def test_a_driver_that_does_not_begin_is_asked_again() -> None:
    driver = Driver()
    driver.broken = True
    gpus = gauge(driver)
    gpus.read()
    gpus.wait(60)
    assert list(gpus.read()) == []
    gpus.wait(60)
    driver.broken = False
    gpus.read()
    gpus.wait(60)
    assert len(gpus.read()) == 2
    gpus.wait(60)


def test_the_stand_in_has_what_the_real_module_has() -> None:
    named = [name for name in vars(Driver) if name.startswith(("nvml", "NVML"))]
    assert [name for name in named if not hasattr(pynvml, name)] == []
