"""Which pods to mark, and how a mark is set and taken back. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

COST = "controller.kubernetes.io/pod-deletion-cost"
# Others cost 0, where nobody has said anything.
LOWERED = "-100"
# What keeps whoever empties nodes from doing so while the pod is there.
STAYS = ("cluster-autoscaler.kubernetes.io/safe-to-evict", "karpenter.sh/do-not-disrupt")
# What the annotations were before the mark, as JSON.
FORMER = "atelier.io/marked"

_TOUCHED = (COST, *STAYS)


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod of a worker.

    Attributes:
        leaving: Whether it is being deleted: a mark changes nothing any more.
    """

    name: str
    uid: str
    annotations: Mapping[str, str] = field(default_factory=dict)
    leaving: bool = False

    @property
    def is_marked(self) -> bool:
        """Whether it bears a mark."""
        return FORMER in self.annotations


def mark(pod: Pod) -> dict[str, str | None]:
    """Return the changes of annotations that mark a pod; None removes one."""
    former = {name: pod.annotations[name] for name in _TOUCHED if name in pod.annotations}
    changes: dict[str, str | None] = {name: None for name in STAYS if name in pod.annotations}
    return {**changes, COST: LOWERED, FORMER: json.dumps(former, sort_keys=True)}


def unmark(pod: Pod) -> dict[str, str | None]:
    """Return the changes of annotations that take a mark back; what does not read as ours is taken for nothing."""
    try:
        found = json.loads(pod.annotations.get(FORMER, "{}"))
    except ValueError:
        found = {}
    former = found if isinstance(found, dict) else {}
    changes: dict[str, str | None] = {
        name: value for name in STAYS if isinstance(value := former.get(name), str) and name not in pod.annotations
    }
    cost = former.get(COST)
    return {**changes, COST: cost if isinstance(cost, str) else None, FORMER: None}


@dataclass(frozen=True, slots=True)
class CordonedWorker:
    """What the scheduler tells of a worker.

    Attributes:
        surplus: Whether the scheduler has cordoned all of it.
        noted: Whether the scheduler takes it for marked.
        announced: Whether the scheduler expects a mark.
    """

    name: str
    surplus: bool
    noted: bool = False
    announced: bool = False


@dataclass(frozen=True, slots=True)
class MarkPlan:
    """What is to be done, by name of the pod.

    Attributes:
        announce: To be announced to the scheduler, and marked if it accepts.
        unmark: To be freed of their mark.
        marked: Bear a mark, which the scheduler does not know of.
        unmarked: Bear none, although the scheduler takes them for marked.
    """

    announce: Collection[str] = ()
    unmark: Collection[str] = ()
    marked: Collection[str] = ()
    unmarked: Collection[str] = ()


def plan(pods: Mapping[str, Pod], workers: Collection[CordonedWorker]) -> MarkPlan:
    """Compare pods with what the scheduler tells."""
    known = {worker.name: worker for worker in workers}
    surplus = {worker.name for worker in workers if worker.surplus}
    bearing = {name for name, pod in pods.items() if pod.is_marked}
    there = {name for name, pod in pods.items() if not pod.leaving}
    return MarkPlan(
        announce=sorted((surplus & there) - bearing),
        unmark=sorted((bearing & there) - surplus),
        marked=sorted(name for name in bearing if name in known and not known[name].noted),
        # A worker without a pod cannot be chosen.
        unmarked=sorted(
            worker.name
            for worker in workers
            if (worker.noted or worker.announced) and worker.name not in bearing and worker.name not in surplus
        ),
    )
