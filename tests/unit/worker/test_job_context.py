from pathlib import Path

import pytest
from atelier.inference.v1.child_pb2 import ChildJob, ChildMessage, ChildProgress
from atelier.tasks.v1.phase_pb2 import (
    TASK_PHASE_FETCHING,
    TASK_PHASE_LOADING_MODEL,
    TASK_PHASE_PROVIDER_QUEUED,
    TASK_PHASE_RUNNING,
    TASK_PHASE_UPSCALING,
)
from atelier.tasks.v1.service_requests_pb2 import ServiceRequest
from atelier.tasks.v1.worker_service_pb2 import JOB_KIND_TASK

from meshkit.worker.job_context import JobContext


def test_the_folder_is_made_when_it_is_asked_for(tmp_path: Path) -> None:
    context = JobContext(ChildJob(folder=str(tmp_path / "1")), lambda _: None)
    assert not (tmp_path / "1").exists()
    assert context.folder.is_dir()
    assert context.folder == tmp_path / "1"


def test_steps_that_come_fast_are_thinned_out_but_for_previews_and_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("meshkit.worker.job_context.time.monotonic", lambda: now)
    seen: list[ChildProgress] = []
    context = JobContext(ChildJob(number=7), seen.append)
    for step in range(1, 6):
        context.progress(step, 5, b"jpeg" if step == 3 else None)
    assert [(report.number, report.step, report.preview) for report in seen] == [
        (7, 1, b""),
        (7, 3, b"jpeg"),
        (7, 5, b""),
    ]
    now += 1.0
    context.progress(1, 9)
    assert seen[-1].step == 1


def test_the_text_so_far_is_told_with_the_steps_that_are_told_and_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("meshkit.worker.job_context.time.monotonic", lambda: now)
    seen: list[ChildProgress] = []
    context = JobContext(ChildJob(), seen.append)
    context.progress(1, 9, text="a")
    context.progress(2, 9, text="a red")
    now += 1.0
    context.progress(3, 9, text="é" * 40_000)
    context.progress(9, 9)
    assert [report.text for report in seen] == ["a", "é" * 32_768, ""]


def test_a_job_without_a_kind_is_a_task() -> None:
    assert JobContext(ChildJob(), lambda _: None).kind == JOB_KIND_TASK


def test_a_cancel_is_seen() -> None:
    context = JobContext(ChildJob(), lambda _: None)
    assert not context.cancelled()
    context.cancel()
    assert context.cancelled()


def test_what_an_attempt_is_at_is_told_with_its_progress() -> None:
    reports: list[ChildProgress] = []
    context = JobContext(ChildJob(number=3), reports.append)
    context.begins(TASK_PHASE_LOADING_MODEL)
    context.begins(TASK_PHASE_RUNNING)
    context.progress(4, 4)
    context.upscaling()
    context.upscaling()
    context.progress(4, 4)
    assert [(report.phase, report.step, report.total) for report in reports] == [
        (TASK_PHASE_LOADING_MODEL, 0, 0),
        (TASK_PHASE_RUNNING, 0, 0),
        (TASK_PHASE_RUNNING, 4, 4),
        (TASK_PHASE_UPSCALING, 4, 4),
        (TASK_PHASE_UPSCALING, 4, 4),
    ]


def test_a_place_in_the_queue_of_a_provider_is_told_without_a_step_back() -> None:
    reports: list[ChildProgress] = []
    context = JobContext(ChildJob(number=3), reports.append)
    context.begins(TASK_PHASE_PROVIDER_QUEUED, position=7)
    context.progress(1, 4)
    context.begins(TASK_PHASE_PROVIDER_QUEUED, position=0)
    context.begins(TASK_PHASE_FETCHING)
    assert [(each.phase, each.HasField("queue_position"), each.queue_position, each.step) for each in reports] == [
        (TASK_PHASE_PROVIDER_QUEUED, True, 7, 0),
        (TASK_PHASE_PROVIDER_QUEUED, False, 0, 1),
        (TASK_PHASE_PROVIDER_QUEUED, True, 0, 1),
        (TASK_PHASE_FETCHING, False, 0, 1),
    ]


async def test_a_job_that_was_not_leased_makes_no_paid_requests() -> None:
    context = JobContext(ChildJob(), lambda _: None)
    assert (list(context.open_requests), context.called_off) == ([], False)
    with pytest.raises(RuntimeError, match="not one of a leased attempt"):
        await context.note(ServiceRequest(id="r"))


def test_who_asks_to_be_told_of_a_pause_is_told_at_once_where_it_was_asked_before() -> None:
    context, told = JobContext(ChildJob(), lambda _: None), []
    context.on_pause(lambda: told.append("first"))
    assert not context.paused()
    context.pause()
    context.on_pause(lambda: told.append("late"))
    assert context.paused()
    assert told == ["first", "late"]
    assert not context.cancelled()


def test_what_is_said_is_told_under_the_number_and_what_is_heard_is_taken_once() -> None:
    said: list[ChildMessage] = []
    context = JobContext(ChildJob(number=7), lambda _: None, say=said.append)
    context.say("state", '{"step": 3}')
    assert said == [ChildMessage(number=7, kind="state", text='{"step": 3}')]
    context.hear(ChildMessage(kind="sample"))
    context.hear(ChildMessage(kind="other"))
    assert [message.kind for message in context.heard()] == ["sample", "other"]
    assert context.heard() == []
