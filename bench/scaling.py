"""Simulate a day of bursty work on workers that KEDA scales: waits, busy pods that were chosen, and cost.

The scheduler's part is the product's own code (`services.tasks.scaling.domain`: demand, cordons, what is reported), and
so is what KEDA is answered (`services.monitoring.scaler.answers`). Kubernetes' part follows its sources: the horizontal
autoscaler every 15 s (tolerance 10 %, scale-down stabilised, scale-up policies), pods chosen by readiness,
then deletion cost, then age. An autoscaler by the use of processors stands beside it, on the same work.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import random
import sys
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from uuid import UUID

from services.monitoring.scaler.answers import QueueState, Trigger, active, target, trigger_of, value
from services.tasks.scaling.domain import (
    CordonedBy,
    QueueDemand,
    QueueWork,
    RemovalMark,
    ScaleIn,
    ScalePolicy,
    WorkerPool,
    demands,
)

QUEUE = "inference"
HPA_SECONDS = 15
# Scale-down is stabilised for so long: Kubernetes' default, and where the scheduler has waited already.
STABLE_SECONDS = 300
SCHEDULED_STABLE_SECONDS = 15
COOLDOWN_SECONDS = 300
TOLERANCE = 0.1
# From the scheduler's look at the database until the pod is deleted: both caches, the autoscaler, the ReplicaSet.
CHOICE_SECONDS = 4


@dataclass(frozen=True, slots=True)
class Scenario:
    """What is simulated.

    Attributes:
        seconds: How long.
        most: Pods at most.
        peak: Share of these that is busy at the height of the day, without bursts.
        mean_seconds: What a task takes on average.
        start_seconds: What a pod takes to start, on average.
        patch_seconds: What a patch of a pod takes.
        tick: Seconds between two looks of the scheduler and of the marker.
        seed: Of all that is drawn.
    """

    seconds: int = 86_400
    most: int = 1000
    peak: float = 0.6
    mean_seconds: float = 30.0
    start_seconds: float = 120.0
    patch_seconds: float = 0.2
    tick: int = 5
    seed: int = 1


@dataclass(frozen=True, slots=True)
class ScalingOutcome:
    """What came of it.

    Attributes:
        tasks: Tasks that were begun.
        wait_p50: Seconds that half of them waited at most.
        wait_p95: Seconds that 95 of 100 waited at most.
        busy_chosen: Pods that were removed while they worked.
        removed: Pods that were removed.
        patches: Patches of pods.
        pod_hours: Hours that pods were there.
        busy_hours: Hours that they worked.
        highest: Pods at the height.
        zero_seconds: Seconds without a pod.
    """

    tasks: int
    wait_p50: float
    wait_p95: float
    busy_chosen: int
    removed: int
    patches: int
    pod_hours: float
    busy_hours: float
    highest: int
    zero_seconds: int


@dataclass(eq=False, slots=True)
class SimulatedPod:
    """A pod with one slot."""

    number: int
    ready_at: float
    pool: WorkerPool
    cost: int = 0
    leases_after: float = 0.0
    gone: bool = False
    task: tuple[float, float] | None = None

    @property
    def busy(self) -> bool:
        """Whether it works."""
        return self.task is not None


@dataclass(slots=True)
class ScalingTrace:
    """What the plot shows, by minute."""

    wanted: list[float] = field(default_factory=list)
    pods: list[int] = field(default_factory=list)
    busy: list[int] = field(default_factory=list)


def rate(scenario: Scenario, drawn: random.Random) -> Callable[[int], float]:
    """Return the tasks that come in a second: a day's curve, nights without work, and bursts."""
    bursts = []
    at = 0.0
    while at < scenario.seconds:
        at += drawn.expovariate(1 / 2400)
        bursts.append((at, at + drawn.uniform(60, 900), drawn.uniform(0.1, 0.4)))
    capacity = scenario.most / scenario.mean_seconds

    def at_second(second: int) -> float:
        phase = second / min(scenario.seconds, 86_400)
        day = max(0.0, math.sin(math.pi * (phase * 1.5 - 0.25))) ** 2  # quarter, then nothing at either end
        share = scenario.peak * day
        share += sum(height for begin, end, height in bursts if begin <= second < end and day > 0)
        return capacity * min(share, 0.9)

    return at_second


class Cluster:
    """Pods, tasks and time, whoever scales them.

    Args:
        scenario: What is simulated.
        pods: Pods at the beginning.
    """

    def __init__(self, scenario: Scenario, pods: int = 0) -> None:
        self.scenario = scenario
        self.now = 0
        self.pods: dict[int, SimulatedPod] = {}
        self.waiting: deque[tuple[float, float]] = deque()
        self.waiting_seconds = 0.0
        self.waits: list[float] = []
        self.busy_chosen = self.removed = self.highest = self.zero_seconds = self.pod_seconds = 0
        self.busy_seconds = 0.0
        self.trace = ScalingTrace()
        self.settle_seconds = 0.0
        self._drawn = random.Random(scenario.seed)
        self._rate = rate(scenario, self._drawn)
        self._numbers = iter(range(10**9))
        self._ends: list[tuple[float, int, SimulatedPod]] = []
        self._free: deque[SimulatedPod] = deque()
        self._starting: list[tuple[float, int, SimulatedPod]] = []
        self.ready: dict[int, SimulatedPod] = {}
        for _ in range(pods):
            self._begin(0.0)

    def scale(self, replicas: int) -> None:
        """Have so many pods, as a ReplicaSet does: starting ones go first, then the lowest cost, then the newest."""
        replicas = max(0, min(replicas, self.scenario.most))
        for _ in range(replicas - len(self.pods)):
            mean = self.scenario.start_seconds
            self._begin(self.now + self._drawn.uniform(0.75, 1.25) * mean)
        surplus = len(self.pods) - replicas
        if surplus > 0:
            for pod in heapq.nsmallest(surplus, self.pods.values(), key=self._rank):
                self._remove(pod)

    def _rank(self, pod: SimulatedPod) -> tuple[bool, int, float]:
        return (pod.number in self.ready, pod.cost, -pod.ready_at)

    def _begin(self, ready_at: float) -> None:
        number = next(self._numbers)
        pod = SimulatedPod(number, ready_at, WorkerPool(UUID(int=number), f"pod-{number}", (QUEUE,), 1, 0))
        self.pods[number] = pod
        heapq.heappush(self._starting, (ready_at, number, pod))

    def _remove(self, pod: SimulatedPod) -> None:
        del self.pods[pod.number]
        self.ready.pop(pod.number, None)
        pod.gone = True
        self.removed += 1
        if pod.task is not None:
            self.busy_chosen += 1
            self.waiting.appendleft(pod.task)  # handed back
            self.waiting_seconds += pod.task[1]

    def step(self) -> None:
        """Pass a second: what ends, comes, starts and is leased in it."""
        now = self.now
        while self._ends and self._ends[0][0] <= now:
            pod = heapq.heappop(self._ends)[2]
            if not pod.gone:
                pod.task = None
                pod.pool = replace(pod.pool, held=0)
                self._free.append(pod)
        while self._starting and self._starting[0][0] <= now:
            pod = heapq.heappop(self._starting)[2]
            if not pod.gone:
                self.ready[pod.number] = pod
                pod.leases_after = now + self.settle_seconds
                self._free.append(pod)
        for _ in range(self._poisson(self._rate(now))):
            seconds = self._drawn.lognormvariate(math.log(self.scenario.mean_seconds) - 0.18, 0.6)
            self.waiting.append((now, seconds))
            self.waiting_seconds += seconds
        self._lease()
        self.highest = max(self.highest, len(self.pods))
        self.zero_seconds += not self.pods
        self.pod_seconds += len(self.pods)
        busy = len(self.ready) - sum(not pod.gone for pod in self._free) if now % 60 == 0 else 0
        if now % 60 == 0:
            self.trace.pods.append(len(self.pods))
            self.trace.busy.append(busy)
            self.trace.wanted.append(self._rate(now) * self.scenario.mean_seconds)
        self.now += 1

    def _lease(self) -> None:
        # Those that were idle for longest first: the worst case for whoever looks for idle ones.
        passed: list[SimulatedPod] = []
        while self.waiting and self._free:
            pod = self._free.popleft()
            if pod.gone:
                continue
            if pod.pool.cordoned_by is not None or pod.leases_after > self.now:
                passed.append(pod)
                continue
            came, seconds = pod.task = self.waiting.popleft()
            self.waiting_seconds -= seconds
            self.waits.append(self.now - came)
            self.busy_seconds += seconds
            pod.pool = replace(pod.pool, held=1)
            heapq.heappush(self._ends, (self.now + seconds, pod.number, pod))
        self._free.extend(passed)

    def _poisson(self, mean: float) -> int:
        if mean > 50:
            return max(0, round(self._drawn.gauss(mean, math.sqrt(mean))))
        limit, count, product = math.exp(-mean), 0, self._drawn.random()
        while product > limit:
            count += 1
            product *= self._drawn.random()
        return count

    def outcome(self, patches: int = 0) -> ScalingOutcome:
        """Sum up."""
        waits = sorted(self.waits) or [0.0]
        return ScalingOutcome(
            tasks=len(self.waits),
            wait_p50=waits[len(waits) // 2],
            wait_p95=waits[int(len(waits) * 0.95)],
            busy_chosen=self.busy_chosen,
            removed=self.removed,
            patches=patches,
            pod_hours=round(self.pod_seconds / 3600, 1),
            busy_hours=round(self.busy_seconds / 3600, 1),
            highest=self.highest,
            zero_seconds=self.zero_seconds,
        )


class Autoscaler:
    """Kubernetes' horizontal autoscaler: tolerance, stabilisation and policies; above zero replicas.

    Args:
        stable_seconds: Over how long the highest recommendation counts before there are less.
    """

    def __init__(self, stable_seconds: int) -> None:
        self._stable = stable_seconds
        self._recommended: deque[tuple[int, int]] = deque()

    def decide(self, now: int, current: int, ratio: float, wanted: int) -> int:
        """Return the replicas to have.

        Args:
            now: Seconds.
            current: Replicas.
            ratio: Value by target of these.
            wanted: Replicas by the metric.
        """
        recommended = current if abs(ratio - 1.0) <= TOLERANCE else max(1, wanted)
        self._recommended.append((now, recommended))
        while self._recommended[0][0] <= now - self._stable:
            self._recommended.popleft()
        if recommended > current:
            return min(recommended, max(2 * current, current + 50))  # 100 % or 50 pods in a period
        return min(current, max(number for _, number in self._recommended))


def by_scheduler(scenario: Scenario, policy: ScalePolicy) -> tuple[ScalingOutcome, ScalingTrace]:
    """Scale by what the scheduler reports, with cordons and marks."""
    cluster = Cluster(scenario)
    cluster.settle_seconds = policy.settle_seconds
    scale_in, autoscaler = ScaleIn(policy), Autoscaler(SCHEDULED_STABLE_SECONDS)
    trigger = trigger_of({"queue": QUEUE, "slots": "1"})
    patches: list[tuple[float, int, bool]] = []  # when it takes effect, the pod, whether it marks
    under_way: set[int] = set()
    decided: deque[tuple[int, int]] = deque()
    count, idle_since = 0, 0
    for now in range(scenario.seconds):
        while decided and decided[0][0] <= now:
            cluster.scale(decided.popleft()[1])
        _patch(cluster, patches, under_way)
        cluster.step()
        if now % scenario.tick == 0:
            _scale_in(cluster, scale_in, policy)
            for number, marks in _marks(cluster, under_way):
                under_way.add(number)
                heapq.heappush(patches, (now + scenario.patch_seconds, number, marks))
                count += 1
        if not cluster.pods and cluster.waiting:
            # The stream tells at once that there is work.
            decided.append((now + 1, 1))
        if now % HPA_SECONDS == 0:
            state = _state(cluster, policy)
            idle_since = now if active(trigger, state) else idle_since
            current = len(cluster.pods)
            if current and now - idle_since >= COOLDOWN_SECONDS:
                decided.append((now + CHOICE_SECONDS, 0))
            elif current:
                decided.append((now + CHOICE_SECONDS, _replicas(autoscaler, now, current, trigger, state)))
    return cluster.outcome(count), cluster.trace


def _patch(cluster: Cluster, patches: list[tuple[float, int, bool]], under_way: set[int]) -> None:
    """Carry out the patches that are due, and confirm them."""
    while patches and patches[0][0] <= cluster.now:
        _, number, marks = heapq.heappop(patches)
        under_way.discard(number)
        if (pod := cluster.pods.get(number)) is not None:
            pod.cost = -100 if marks else 0
            pod.pool = replace(pod.pool, mark=RemovalMark.SET if marks else None)


def _replicas(autoscaler: Autoscaler, now: int, current: int, trigger: Trigger, state: QueueState) -> int:
    each = target(trigger, state)
    found = value(trigger, state)
    return autoscaler.decide(now, current, found / (each * current), math.ceil(found / each - 1e-6))


def _work(cluster: Cluster) -> list[QueueWork]:
    running = sum(pod.busy for pod in cluster.ready.values())
    return [
        QueueWork(
            QUEUE, waiting=len(cluster.waiting), waiting_seconds=max(0.0, cluster.waiting_seconds), running=running
        )
    ]


def _state(cluster: Cluster, policy: ScalePolicy) -> QueueState:
    [found] = demands(_work(cluster), [pod.pool for pod in cluster.ready.values()], policy)
    return queue_state(found, policy)


def queue_state(found: QueueDemand, policy: ScalePolicy) -> QueueState:
    """Return what monitoring reads of the scheduler."""
    work = found.work
    return QueueState(
        work.waiting, work.running, work.delayed, found.slots_reported, policy.drain_seconds, policy.utilization
    )


def _scale_in(cluster: Cluster, scale_in: ScaleIn, policy: ScalePolicy) -> None:
    by_name = {pod.pool.name: pod for pod in cluster.ready.values()}
    decision = scale_in.decide(cluster.now, _work(cluster), [pod.pool for pod in by_name.values()])
    for name in decision.cordon:
        pod = by_name[name]
        if not pod.busy:
            pod.pool = replace(pod.pool, cordoned_by=CordonedBy.SCHEDULER)
    for name in decision.uncordon:
        pod = by_name[name]
        if pod.pool.mark is not None:
            pod.leases_after = cluster.now + policy.settle_seconds
        pod.pool = replace(pod.pool, cordoned_by=None)


def _marks(cluster: Cluster, under_way: set[int]) -> Iterator[tuple[int, bool]]:
    """Which pods the marker patches now: it announces marks to the scheduler before it sets them."""
    for pod in cluster.ready.values():
        if pod.number in under_way:
            continue
        surplus = pod.pool.cordoned_by is CordonedBy.SCHEDULER
        if surplus and pod.pool.mark is None:
            pod.pool = replace(pod.pool, mark=RemovalMark.ANNOUNCED)
            yield pod.number, True
        elif not surplus and pod.pool.mark is not None and pod.leases_after <= cluster.now:
            yield pod.number, False


def by_processors(scenario: Scenario) -> tuple[ScalingOutcome, ScalingTrace]:
    """Scale by the use of the pods' processors, at 80 %; one pod at least."""
    cluster, autoscaler = Cluster(scenario, pods=1), Autoscaler(STABLE_SECONDS)
    decided: deque[tuple[int, int]] = deque()
    for now in range(scenario.seconds):
        while decided and decided[0][0] <= now:
            cluster.scale(decided.popleft()[1])
        cluster.step()
        if now % HPA_SECONDS == 0 and cluster.ready:
            busy = sum(pod.busy for pod in cluster.ready.values())
            ratio = busy / len(cluster.ready) / 0.8
            wanted = math.ceil(len(cluster.ready) * ratio)
            # Pods that start count as not busy where more are wanted, so that what they bring is waited for.
            current = len(cluster.pods)
            if ratio > 1:
                wanted, ratio = max(wanted, current), max(1.0, busy / current / 0.8)
                wanted = math.ceil(current * ratio)
            decided.append((now + CHOICE_SECONDS, autoscaler.decide(now, current, ratio, wanted)))
    return cluster.outcome(), cluster.trace


def plot(traces: dict[str, ScalingTrace], path: Path) -> None:
    """Draw pods, and those that work, over the day, as SVG: a panel for each way to scale."""
    width, height, gap = 900, 220, 46
    minutes = max(len(trace.pods) for trace in traces.values())
    top = max(max(trace.pods) for trace in traces.values()) or 1
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width + 60} {(height + gap) * len(traces) + 10}">',
        '<g font-family="sans-serif" font-size="13">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    for index, (title, trace) in enumerate(traces.items()):
        base = (height + gap) * index + gap + height - 10

        def line(values: list[float] | list[int], colour: str, base: int = base) -> str:
            points = " ".join(
                f"{50 + x * width / minutes:.1f},{base - y * (height - 20) / top:.1f}" for x, y in enumerate(values)
            )
            return f'<polyline fill="none" stroke="{colour}" stroke-width="1.4" points="{points}"/>'

        parts += [
            f'<text x="50" y="{base - height + 12}">{title}</text>',
            f'<text x="8" y="{base - height + 32}">{top}</text><text x="8" y="{base}">0</text>',
            f'<line x1="50" x2="{50 + width}" y1="{base}" y2="{base}" stroke="#999"/>',
            *(
                f'<text x="{50 + minute * width / minutes:.0f}" y="{base + 15}" fill="#777">{minute // 60} h</text>'
                for minute in range(0, minutes, 360)
            ),
            line(trace.pods, "#1f5fa8"),
            line(trace.busy, "#d1762b"),
        ]
    parts.append(
        f'<text x="{width - 100}" y="20"><tspan fill="#1f5fa8">pods</tspan>'
        '<tspan dx="12" fill="#d1762b">of these at work</tspan></text></g></svg>'
    )
    path.write_text("\n".join(parts) + "\n", encoding="utf-8")


def main() -> int:
    """Simulate, print, and fail where the bounds do not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--hours", type=float, default=24)
    parser.add_argument("--pods", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--tick", type=int, default=5, help="Seconds between two looks of the scheduler.")
    parser.add_argument("--start", type=float, default=120, help="Seconds that a pod takes to start, on average.")
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    scenario = Scenario(
        seconds=int(given.hours * 3600), most=given.pods, seed=given.seed, tick=given.tick, start_seconds=given.start
    )
    policy = ScalePolicy(drain_seconds=60.0, utilization=0.8, surplus_seconds=120.0, settle_seconds=5.0)
    late = replace(scenario, patch_seconds=10.0)
    ways: dict[str, Callable[[], tuple[ScalingOutcome, ScalingTrace]]] = {
        "by the use of processors": lambda: by_processors(scenario),
        "by the scheduler": lambda: by_scheduler(scenario, policy),
        "by the scheduler, patches 10 s late": lambda: by_scheduler(late, policy),
    }
    runs = {}
    for name, simulate in ways.items():
        runs[name] = simulate()
        print(json.dumps({"scaled": name, **asdict(runs[name][0])}), flush=True)
    if given.plot:
        plot({name: trace for name, (_, trace) in runs.items() if "late" not in name}, given.plot)
    own = [outcome for name, (outcome, _) in runs.items() if "scheduler" in name]
    held = all(one.busy_chosen == 0 and one.wait_p95 < 2 * scenario.start_seconds for one in own)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
