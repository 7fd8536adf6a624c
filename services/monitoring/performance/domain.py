"""How fast the mesh works and what its machines bear: snapshots, what follows from two of them, alerts. Pure."""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import pairwise

SNAPSHOT_SECONDS = 5.0
# An hour of them.
KEPT_SNAPSHOTS = 720
RANGES = {"5m": timedelta(minutes=5), "15m": timedelta(minutes=15), "60m": timedelta(minutes=60)}
GIGABYTE = 1e9
_RATE_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class GpuView:
    """A GPU of a worker's machine; what its driver does not tell is None."""

    uuid: str
    name: str
    utilization: float | None = None
    used_bytes: int | None = None
    total_bytes: int | None = None
    temperature: float | None = None
    power_watts: float | None = None


@dataclass(frozen=True, slots=True)
class GpuTotals:
    """All GPUs together: the mean of the shares, the sum of memory and power, the hottest."""

    name: str
    utilization: float | None
    vram_used_gb: float | None
    vram_total_gb: float | None
    temperature: float | None
    power_watts: float | None

    @property
    def vram_percent(self) -> float | None:
        """Share of the memory that is in use."""
        if self.vram_used_gb is None or not self.vram_total_gb:
            return None
        return 100 * self.vram_used_gb / self.vram_total_gb


@dataclass(frozen=True, slots=True)
class ModelView:
    """A model that a worker holds."""

    name: str
    bytes: int
    device: str


@dataclass(frozen=True, slots=True)
class ModelTotals:
    """A model over all workers that hold it."""

    name: str
    devices: Sequence[str]
    bytes: int
    vram_bytes: int | None
    workers: int


@dataclass(frozen=True, slots=True)
class WorkerTold:
    """What a worker has told of itself.

    Attributes:
        process: Its name, and when its process began: counts begin anew with the process.
        completed: Jobs that it has completed since, by type.
    """

    process: tuple[str, datetime]
    completed: Mapping[str, int] = field(default_factory=dict)
    models: Sequence[ModelView] = ()
    gpus: Sequence[GpuView] = ()


@dataclass(frozen=True, slots=True)
class Times:
    """Milliseconds from creation to completion."""

    avg: float
    p95: float
    p99: float


@dataclass(frozen=True, slots=True)
class WorkView:
    """What the tasks service tells."""

    times: Times | None
    waiting: Mapping[str, int]
    workers: Sequence[WorkerTold]


@dataclass(frozen=True, slots=True)
class Throughput:
    """What was done in a minute."""

    images: float
    jobs: float


@dataclass(frozen=True, slots=True)
class DatabaseCounters:
    """What PostgreSQL counts.

    Attributes:
        transactions: Those that ended, since its statistics were reset.
        hit_percent: Share of the blocks asked for that were in its memory; None where none was asked for.
    """

    connections: int
    most_connections: int
    transactions: int
    hit_percent: float | None


@dataclass(frozen=True, slots=True)
class HostView:
    """A machine."""

    cpu_percent: float
    ram_used_gb: float
    ram_total_gb: float
    ram_percent: float
    disk_used_gb: float
    disk_total_gb: float
    disk_percent: float


class Severity(enum.StrEnum):
    """How bad a figure is."""

    WARNING = "warning"
    CRITICAL = "critical"


@dataclass(frozen=True, slots=True)
class PerformanceFinding:
    """A figure beyond its threshold."""

    severity: Severity
    metric: str
    value: float
    threshold: float
    message: str


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Figures of one moment; what nobody can tell is None.

    Attributes:
        monotonic: Its moment by the monotonic clock.
        nats_version: Version of NATS; None where it does not answer.
        throughput: What was done in the last minute, as far as workers have told twice.
        transactions_per_min: Since the snapshot before.
    """

    at: datetime
    monotonic: float
    host: HostView
    work: WorkView | None = None
    database: DatabaseCounters | None = None
    nats_version: str | None = None
    throughput: Throughput | None = None
    transactions_per_min: float | None = None
    alerts: Sequence[PerformanceFinding] = ()


class SnapshotRing:
    """The snapshots of the last hour, of one process; they survive nothing."""

    def __init__(self) -> None:
        self._kept: deque[Snapshot] = deque(maxlen=KEPT_SNAPSHOTS)

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def newest(self) -> Snapshot | None:
        """The newest one."""
        return self._kept[-1] if self._kept else None

    def add(self, snapshot: Snapshot) -> None:
        """Keep a snapshot; the oldest goes where there are too many."""
        self._kept.append(snapshot)

    def since(self, moment: datetime) -> list[Snapshot]:
        """Return those of this moment or later, oldest first."""
        return [one for one in self._kept if one.at >= moment]

    def lately(self, monotonic: float) -> list[Snapshot]:
        """Return those of the last minute, oldest first."""
        found = []
        for one in reversed(self._kept):
            if one.monotonic < monotonic - _RATE_SECONDS:
                break
            found.append(one)
        return found[::-1]


def gpu_totals(workers: Sequence[WorkerTold]) -> GpuTotals | None:
    """Return all GPUs together, each once although several workers see it; None where there is none."""
    gpus = list({one.uuid: one for worker in workers for one in worker.gpus}.values())
    if not gpus:
        return None
    names = [one.name for one in gpus]
    shares = [one.utilization for one in gpus if one.utilization is not None]
    used = [one.used_bytes for one in gpus if one.used_bytes is not None]
    total = [one.total_bytes for one in gpus if one.total_bytes is not None]
    watts = [one.power_watts for one in gpus if one.power_watts is not None]
    return GpuTotals(
        ", ".join(name if names.count(name) == 1 else f"{names.count(name)} x {name}" for name in dict.fromkeys(names)),
        sum(shares) / len(shares) if shares else None,
        sum(used) / GIGABYTE if used else None,
        sum(total) / GIGABYTE if total else None,
        max((one.temperature for one in gpus if one.temperature is not None), default=None),
        sum(watts) if watts else None,
    )


def model_totals(workers: Sequence[WorkerTold]) -> list[ModelTotals]:
    """Return each model over all workers that hold it, by name."""
    by_name: dict[str, list[ModelView]] = {}
    for worker in workers:
        for one in worker.models:
            by_name.setdefault(one.name, []).append(one)
    totals = []
    for name, held in sorted(by_name.items()):
        on_gpus = [one.bytes for one in held if one.device.startswith("cuda")]
        totals.append(
            ModelTotals(
                name,
                sorted({one.device for one in held}),
                sum(one.bytes for one in held),
                sum(on_gpus) if on_gpus else None,
                len(held),
            )
        )
    return totals


def throughput(snapshots: Sequence[Snapshot], images: frozenset[str]) -> Throughput | None:
    """Return what workers have completed in a minute, from snapshots that follow each other.

    Args:
        snapshots: Those of the last minute; ones without the tasks service are passed over.
        images: Types of tasks that make images.

    Returns:
        The rates; None where fewer than two snapshots tell. A worker counts from the snapshot that shows it first.
    """
    told = [(one.monotonic, one.work.workers) for one in snapshots if one.work is not None]
    if len(told) < 2 or told[-1][0] <= told[0][0]:
        return None
    made = jobs = 0
    for (_, before), (_, now) in pairwise(told):
        former = {worker.process: worker.completed for worker in before}
        for worker in now:
            if (known := former.get(worker.process)) is None:
                continue
            for name, count in worker.completed.items():
                more = max(0, count - known.get(name, 0))
                jobs += more
                made += more if name in images else 0
    minutes = (told[-1][0] - told[0][0]) / 60
    return Throughput(made / minutes, jobs / minutes)


def transactions_per_min(before: Snapshot | None, database: DatabaseCounters, monotonic: float) -> float | None:
    """Return the rate of transactions since a snapshot; None without one, and where statistics were reset."""
    if before is None or before.database is None or monotonic <= before.monotonic:
        return None
    more = database.transactions - before.database.transactions
    return 60 * more / (monotonic - before.monotonic) if more >= 0 else None


@dataclass(frozen=True, slots=True)
class Threshold:
    """When a figure is bad: from `warning` on, and worse from `critical` on; below them where `falling`."""

    metric: str
    label: str
    unit: str
    warning: float
    critical: float
    falling: bool = False

    def judge(self, value: float | None) -> PerformanceFinding | None:
        """Return what is wrong with a figure; None where nothing is or nobody can tell."""
        if value is None:
            return None
        for severity, limit in ((Severity.CRITICAL, self.critical), (Severity.WARNING, self.warning)):
            if value <= limit if self.falling else value >= limit:
                word = "low" if self.falling else "high"
                return PerformanceFinding(
                    severity, self.metric, value, limit, f"{self.label} {word}: {value:.1f}{self.unit}"
                )
        return None


_GPU_TEMPERATURE = Threshold("gpu_temperature", "GPU temperature", " C", 80, 90)
_GPU_VRAM = Threshold("gpu_vram", "GPU memory", "%", 90, 95)
_CPU = Threshold("host_cpu", "Processor load", "%", 80, 95)
_RAM = Threshold("host_ram", "Memory use", "%", 85, 95)
_DISK = Threshold("host_disk", "Disk use", "%", 80, 90)
_CONNECTIONS = Threshold("postgres_connections", "PostgreSQL connections", "% of its most", 80, 95)
_HITS = Threshold("postgres_cache_hit_ratio", "PostgreSQL cache hit ratio", "%", 90, 80, falling=True)


def findings(snapshot: Snapshot) -> list[PerformanceFinding]:
    """Return what is beyond its threshold."""
    gpu = gpu_totals(snapshot.work.workers) if snapshot.work is not None else None
    host, database = snapshot.host, snapshot.database
    judged = [
        _GPU_TEMPERATURE.judge(gpu.temperature if gpu is not None else None),
        _GPU_VRAM.judge(gpu.vram_percent if gpu is not None else None),
        _CPU.judge(host.cpu_percent),
        _RAM.judge(host.ram_percent),
        _DISK.judge(host.disk_percent),
    ]
    if database is not None:
        judged.append(_CONNECTIONS.judge(100 * database.connections / database.most_connections))
        judged.append(_HITS.judge(database.hit_percent))
    found = [one for one in judged if one is not None]
    if database is None:
        found.append(PerformanceFinding(Severity.CRITICAL, "postgres_up", 0, 1, "PostgreSQL does not answer"))
    if snapshot.nats_version is None:
        found.append(PerformanceFinding(Severity.CRITICAL, "nats_up", 0, 1, "NATS does not answer"))
    return found
