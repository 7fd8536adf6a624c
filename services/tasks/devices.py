"""What workers tell of the devices they compute on. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class WarmModel:
    """A model in a worker's memory.

    Attributes:
        name: Its name.
        bytes: What it takes.
        device: Where it is (`cpu`, `cuda:0`).
    """

    name: str
    bytes: int
    device: str


@dataclass(frozen=True, slots=True)
class GpuReading:
    """A GPU of a worker's machine; what its driver does not tell is None.

    Attributes:
        uuid: Its identifier, the same for every worker that sees it.
        utilization: Percent of the time that it computed lately.
        temperature: Degrees Celsius.
    """

    uuid: str
    name: str
    utilization: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    temperature: float | None = None
    power_watts: float | None = None
