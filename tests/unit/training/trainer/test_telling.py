import asyncio
from typing import cast

from atelier.tasks.v1.worker_service_pb2 import AttemptRef
from atelier.training.v1.trainer_service_pb2 import ReportStepsRequest, ReportStepsResponse

from services.training.trainer.service_calls import TrainerCalls
from services.training.trainer.telling import StepReports


class Service:
    def __init__(self) -> None:
        self.requests: list[ReportStepsRequest] = []
        self.wanted: list[str] = []
        self.asked = asyncio.Event()

    async def steps(self, request: ReportStepsRequest) -> ReportStepsResponse:
        self.requests.append(request)
        self.asked.set()
        wanted, self.wanted = self.wanted, []
        return ReportStepsResponse(sample_prompts=wanted)


def step(number: int, eta: float | None = None) -> dict[str, object]:
    return {"step": number, "loss": number / 10, "eta_seconds": eta}


def reports(service: Service, wanted: list[str]) -> StepReports:
    return StepReports(cast("TrainerCalls", service), AttemptRef(job_id="j", attempt=2), wanted.extend, interval=0)


async def test_what_has_come_since_the_last_report_is_told_together() -> None:
    service = Service()
    wanted: list[str] = []
    service.wanted = ["a [trigger]"]
    told = reports(service, wanted)
    told.noted("Device: cpu.")
    told.stepped(step(1))
    told.stepped(step(2, eta=7.2))
    told.validated(2, {"0.00-0.25": 0.5})
    await told.flush()
    [request] = service.requests
    assert (request.ref.attempt, request.step, request.eta_seconds) == (2, 2, 8)
    assert [(point.step, point.loss) for point in request.losses] == [(1, 0.1), (2, 0.2)]
    assert [(point.step, point.bucket, point.loss) for point in request.validation] == [(2, "0.00-0.25", 0.5)]
    assert list(request.log_lines) == ["Device: cpu."]
    assert wanted == ["a [trigger]"]
    await told.flush()
    assert len(service.requests) == 1, "nothing is new"


async def test_more_than_a_report_holds_goes_into_the_next() -> None:
    service = Service()
    told = reports(service, [])
    for number in range(1, 10_002):
        told.stepped(step(number))
    told.noted("x" * 5_000)
    await told.flush()
    assert [len(request.losses) for request in service.requests] == [10_000, 1]
    assert [request.step for request in service.requests] == [10_000, 10_001]
    assert len(service.requests[0].log_lines[0]) == 2_000


async def test_reports_go_on_by_themselves() -> None:
    service = Service()
    told = reports(service, [])
    running = asyncio.create_task(told.run())
    for number in (1, 2):
        service.asked.clear()
        told.stepped(step(number))
        await service.asked.wait()
    running.cancel()
    assert [request.step for request in service.requests] == [1, 2]
