"""Batches without a child: contexts, a handler and a lender that do as they are told."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from atelier.inference.v1.child_pb2 import ChildJob, ChildProgress
from atelier.tasks.v1.enums_pb2 import TASK_TYPE_NOOP
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask, Task

from meshkit.worker.batch_runner import BatchRunner
from meshkit.worker.handlers import HeldModel, Lender, Need, Output, TaskHandler
from meshkit.worker.job_context import JobContext
from meshkit.worker.pairs import Pair


def context(folder: Path = Path("/nowhere"), attempt: int = 1, **noop: Any) -> tuple[JobContext, list[ChildProgress]]:
    sent: list[ChildProgress] = []
    job = ChildJob(
        number=1,
        job_id="j",
        spec=CreateTask(noop=CreateNoopTask(**noop)),
        task=Task(attempt=attempt),
        folder=str(folder),
    )
    return JobContext(job, sent.append), sent


class Handler:
    """Gives the outcome it is told to give."""

    families = ("a family",)

    def __init__(
        self,
        *outcomes: Output | Exception,
        raises: Exception | None = None,
        needs: Sequence[Need] = (),
        refuses: Exception | None = None,
    ) -> None:
        self._outcomes = outcomes
        self._raises = raises
        self._needs = needs
        self._refuses = refuses

    def needs(self, spec: CreateTask, task: Task) -> Sequence[Need]:
        if self._refuses is not None:
            refused, self._refuses = self._refuses, None
            raise refused
        return self._needs

    def run(self, batch: Sequence[Any], lent: Mapping[str, Any]) -> Sequence[Output | Exception]:
        self.lent = lent
        if self._raises is not None:
            raise self._raises
        return self._outcomes


class Shelf:
    """A lender that writes down what it is asked for."""

    device = "cpu"

    def __init__(self, refuses: Exception | None = None, resident: Sequence[str] = ()) -> None:
        self._refuses = refuses
        self.resident_families = resident
        self.told: list[object] = []

    @contextmanager
    def lend(
        self, needs: Sequence[Need], on_loan: Callable[[str, bool], None] = lambda _name, _resident: None
    ) -> Iterator[Mapping[str, Any]]:
        if self._refuses is not None:
            raise self._refuses
        for need in needs:
            on_loan(f"the-{need.family}", need.family in self.resident_families)
        self.told.append(tuple(needs))
        yield {need.name: f"a {need.family}" for need in needs}
        self.told.append("back")

    def resident(self) -> Sequence[HeldModel]:
        return ()

    def free(self) -> None:
        self.told.append("free")


def batch_runner(
    handler: Handler,
    lender: Lender | None = None,
    explain: Callable[[Exception], Exception] = lambda error: error,
    review: Callable[[JobContext, Output], Output] = lambda _, output: output,
) -> BatchRunner:
    return BatchRunner({Pair(TASK_TYPE_NOOP): cast("TaskHandler", handler)}, lender, explain, review)
