"""Snapshots of what the mesh bears: the ring, what follows from two of them, and alerts."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from meshkit.errors import unavailable
from services.monitoring.performance.domain import (
    DatabaseCounters,
    GpuView,
    HostView,
    ModelView,
    Severity,
    Snapshot,
    SnapshotRing,
    Throughput,
    WorkerTold,
    WorkView,
    findings,
    gpu_totals,
    model_totals,
    throughput,
    transactions_per_min,
)
from services.monitoring.performance.watch import IMAGE_TYPES, PerformanceWatch, Sources

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
QUIET = HostView(10, 8, 32, 25, 100, 500, 20)
DATABASE = DatabaseCounters(connections=5, most_connections=100, transactions=1000, hit_percent=99.0)


def snapshot(seconds: float = 0, *workers: WorkerTold, database: DatabaseCounters | None = DATABASE) -> Snapshot:
    return Snapshot(
        NOON + timedelta(seconds=seconds), seconds, QUIET, WorkView(None, {}, workers), database, nats_version="2.0.0"
    )


def worker(name: str = "w", /, **completed: int) -> WorkerTold:
    return WorkerTold((name, NOON), completed)


def test_the_ring_keeps_an_hour_and_tells_it_oldest_first() -> None:
    ring = SnapshotRing()
    assert len(ring) == 0
    for number in range(725):
        ring.add(snapshot(5 * number))
    assert len(ring) == 720
    assert ring.newest == snapshot(5 * 724)
    hour = ring.since(NOON)
    assert [one.monotonic for one in hour] == [5.0 * number for number in range(5, 725)]
    assert len(ring.since(NOON + timedelta(seconds=5 * 724) - timedelta(minutes=5))) == 61
    assert [one.monotonic for one in ring.lately(3600)] == [3540 + 5 * number for number in range(17)]


def test_throughput_is_what_processes_completed_that_two_snapshots_show() -> None:
    assert throughput([snapshot(0, worker(GENERATION=5))], IMAGE_TYPES) is None
    minute = [
        snapshot(0, worker(GENERATION=5), worker("other", GENERATION=100)),
        snapshot(10, worker(GENERATION=7, TRAINING=1), worker("new", GENERATION=50)),
        replace(snapshot(20), work=None),
        snapshot(30, worker(GENERATION=9, TRAINING=1), worker("new", GENERATION=51)),
    ]
    assert throughput(minute, IMAGE_TYPES) == Throughput(images=10.0, jobs=12.0)
    restarted = WorkerTold(("w", NOON + timedelta(seconds=1)), {"GENERATION": 0})
    assert throughput([snapshot(0, worker(GENERATION=5)), snapshot(5, restarted)], IMAGE_TYPES) == Throughput(0, 0)
    assert "GENERATION" in IMAGE_TYPES
    assert "VISION" not in IMAGE_TYPES


def test_transactions_are_a_difference_that_a_reset_interrupts() -> None:
    later = replace(DATABASE, transactions=1100)
    assert transactions_per_min(snapshot(0), later, 5.0) == 1200
    assert transactions_per_min(None, later, 5.0) is None
    assert transactions_per_min(snapshot(0, database=None), later, 5.0) is None
    assert transactions_per_min(snapshot(0), replace(DATABASE, transactions=3), 5.0) is None


def test_gpus_count_once_and_what_no_driver_tells_is_not_known() -> None:
    assert gpu_totals([worker()]) is None
    first = GpuView("a", "H100", 40, int(10e9), int(80e9), 70, 300)
    second = GpuView("b", "H100", 60, int(30e9), int(80e9), 82, 400)
    told = [WorkerTold(("v", NOON), gpus=[first, second]), WorkerTold(("w", NOON), gpus=[second])]
    gpu = gpu_totals(told)
    assert gpu is not None
    assert (gpu.name, gpu.utilization, gpu.temperature, gpu.power_watts) == ("2 x H100", 50, 82, 700)
    assert (gpu.vram_used_gb, gpu.vram_total_gb, gpu.vram_percent) == (40, 160, 25)
    bare = gpu_totals([WorkerTold(("w", NOON), gpus=[GpuView("c", "T4")])])
    assert bare is not None
    assert (bare.name, bare.utilization, bare.vram_percent, bare.temperature) == ("T4", None, None, None)


def test_a_model_is_summed_over_the_workers_that_hold_it() -> None:
    held = ModelView("flux", int(20e9), "cuda:0")
    [model] = model_totals(
        [
            WorkerTold(("v", NOON), models=[held]),
            WorkerTold(("w", NOON), models=[ModelView("flux", int(30e9), "cpu")]),
        ]
    )
    assert (model.name, model.devices, model.workers) == ("flux", ["cpu", "cuda:0"], 2)
    assert (model.bytes, model.vram_bytes) == (int(50e9), int(20e9))
    [on_processor] = model_totals([WorkerTold(("w", NOON), models=[ModelView("tiny", 5, "cpu")])])
    assert on_processor.vram_bytes is None


def test_nothing_is_said_of_what_is_well() -> None:
    assert findings(snapshot()) == []


@pytest.mark.parametrize(
    ("bad", "metric", "severity", "threshold"),
    [
        (replace(snapshot(), host=replace(QUIET, cpu_percent=80)), "host_cpu", Severity.WARNING, 80),
        (replace(snapshot(), host=replace(QUIET, cpu_percent=95)), "host_cpu", Severity.CRITICAL, 95),
        (replace(snapshot(), host=replace(QUIET, ram_percent=94.9)), "host_ram", Severity.WARNING, 85),
        (replace(snapshot(), host=replace(QUIET, disk_percent=90)), "host_disk", Severity.CRITICAL, 90),
        (snapshot(0, database=replace(DATABASE, connections=80)), "postgres_connections", Severity.WARNING, 80),
        (snapshot(0, database=replace(DATABASE, hit_percent=90)), "postgres_cache_hit_ratio", Severity.WARNING, 90),
        (snapshot(0, database=replace(DATABASE, hit_percent=50)), "postgres_cache_hit_ratio", Severity.CRITICAL, 80),
        (snapshot(0, database=None), "postgres_up", Severity.CRITICAL, 1),
        (replace(snapshot(), nats_version=None), "nats_up", Severity.CRITICAL, 1),
        (
            snapshot(0, WorkerTold(("w", NOON), gpus=[GpuView("a", "T4", temperature=82)])),
            "gpu_temperature",
            Severity.WARNING,
            80,
        ),
        (
            snapshot(0, WorkerTold(("w", NOON), gpus=[GpuView("a", "T4", used_bytes=96, total_bytes=100)])),
            "gpu_vram",
            Severity.CRITICAL,
            95,
        ),
    ],
)
def test_a_figure_beyond_its_threshold_is_an_alert(
    bad: Snapshot, metric: str, severity: Severity, threshold: float
) -> None:
    [found] = findings(bad)
    assert (found.metric, found.severity, found.threshold) == (metric, severity, threshold)
    assert found.message


async def test_a_part_that_does_not_answer_leaves_the_others_told() -> None:
    async def away(_seconds: float = 0) -> WorkView:
        raise unavailable("away")

    async def database() -> DatabaseCounters:
        return DATABASE

    async def version() -> str:
        return "2.0.0"

    now = [0.0]
    watch = PerformanceWatch(
        Sources(lambda: QUIET, away, database, version),
        clock=lambda: now[0],
        present=lambda: NOON + timedelta(seconds=now[0]),
    )
    first = await watch.present()
    assert (first.work, first.database, first.transactions_per_min) == (None, DATABASE, None)
    assert len(watch.ring) == 0, "who asks adds nothing to the history"
    await watch.note()
    now[0] = 10.0
    assert await watch.present() is watch.ring.newest
    now[0] = 11.0
    alone = await watch.present()
    assert (alone.at, alone.transactions_per_min) == (NOON + timedelta(seconds=11), 0), "the loop stands still"
    now[0] = 400.0
    await watch.note()
    assert [one.monotonic for one in watch.history("5m")] == [400.0]
    assert [one.monotonic for one in watch.history("15m")] == [0.0, 400.0]
