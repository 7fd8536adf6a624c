"""A closed batch becomes one event, which callers read, acknowledge and delete."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from websockets.asyncio.client import ClientConnection

from meshkit.errors import ErrorKind, MeshError
from services.monitoring.capture.analysis.rules import RiskRules, read_rules
from services.monitoring.capture.analysis.service import AnalysisWorker
from services.monitoring.capture.analysis.text_calls import ModelAnswer
from services.monitoring.capture.postgres.events import PostgresEventStore
from tests.integration.capture.conftest import StartStudio, Studio
from tests.integration.capture.judged import DARK, NOBODY, PERSON, batch, quiet


class Model:
    """A language model that says what it is told to."""

    def __init__(self, answer: ModelAnswer | None = None, error: MeshError | None = None) -> None:
        self.answer = answer
        self.error = error
        self.asked: dict[UUID, str] = {}
        self.given_up: list[UUID] = []

    async def ask(self, task_id: UUID, system: str, prompt: str, reference: str) -> None:
        self.asked[task_id] = prompt

    async def look(self, task_id: UUID) -> ModelAnswer | None:
        if self.error is not None:
            raise self.error
        if task_id not in self.asked:
            raise MeshError(ErrorKind.NOT_FOUND, "Task not found")
        return self.answer

    async def give_up(self, task_id: UUID) -> None:
        self.given_up.append(task_id)


@pytest.fixture
async def studio(start_studio: StartStudio) -> Studio:
    return await quiet(start_studio)


def worker(
    studio: Studio, model: Model | None = None, rules: RiskRules | None = None, seconds: float = 60.0
) -> AnalysisWorker:
    return AnalysisWorker(
        PostgresEventStore(studio.capture.changes),
        rules or read_rules("studio"),
        model,
        answer_seconds=seconds,
        webhook_url="",
        on_alerts=lambda: None,
    )


async def heard(client: ClientConnection, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(60):
        return [json.loads(await client.recv()) for _ in range(count)]


async def test_a_batch_becomes_one_event_whoever_judges_it_how_often(studio: Studio) -> None:
    batch_id = await batch(studio, PERSON, NOBODY)
    await asyncio.gather(*(worker(studio).judge(batch_id) for _ in range(4)))
    await worker(studio).run()
    listed = (await studio.http().get("/events")).json()
    assert listed["pagination"]["total"] == 1
    [event] = listed["items"]
    assert (event["batch_id"], event["camera_id"]) == (str(batch_id), "yard")
    assert (event["risk_score"], event["risk_level"]) == (20, "low")
    assert event["summary"] == (
        "2 photos from camera yard. They show up to 1 person, and nobody is in 1. Framing: full body in 1. View: front "
        "in 1. Garment: red in 1."
    )
    assert event["reasoning"] == (
        "The score is 20 of 100, low. What counts: 1 of 2 photos: no subject is in the picture (+20)."
    )
    facts = event["facts"]
    assert (facts["photos"], facts["people_most"], facts["photos_without_people"]) == (2, 1, 1)
    assert (facts["profile"], facts["summary_by"]) == ("studio", "facts")
    assert [one["rule"] for one in facts["rules"]] == ["no_subject"]
    assert await studio.rows("SELECT state FROM batches") == [("analysed",)]
    assert (await studio.http().get(f"/events/{event['event_id']}")).json() == event


async def test_a_batch_waits_until_its_photos_were_looked_at(studio: Studio) -> None:
    await batch(studio, PERSON, None)
    await batch(studio, PERSON, camera="gate", state="open")
    await worker(studio).run()
    assert await studio.rows("SELECT count(*) FROM events") == [(0,)]
    await studio.rows("UPDATE photos SET state = 'FAILED', error = 'broken' WHERE state = 'WAITING'")
    await worker(studio).run()
    [(summary,)] = await studio.rows("SELECT summary FROM events")
    assert summary.endswith("Faults: not judged in 1.")


async def test_an_event_is_told_with_the_words_of_facts_and_again_with_a_models(studio: Studio) -> None:
    model = Model(ModelAnswer("Camera yard shows one person with a red garment, full body, from the front."))
    judge = worker(studio, model)
    async with studio.listening() as client:
        batch_id = await batch(studio, PERSON)
        await judge.run()  # judges, and asks
        [created] = await heard(client, 1)
        assert created["type"] == "event.created"
        assert created["data"]["summary"].startswith("1 photo from camera yard. It shows 1 person.")
        assert created["data"]["batch_id"] == str(batch_id)
        [prompt] = model.asked.values()
        assert created["data"]["summary"] in prompt
        await judge.run()
        [updated] = await heard(client, 1)
    assert updated["type"] == "event.updated"
    assert updated["data"] == created["data"] | {"summary": model.answer.text if model.answer else ""}
    [event] = (await studio.http().get("/events")).json()["items"]
    assert event["summary"] == updated["data"]["summary"]
    assert (event["facts"]["summary_by"], event["facts"]["model_text_unused"]) == ("model", None)


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (Model(ModelAnswer("A man in a blue garment walks his dog.")), "it has the word `man`"),
        (Model(ModelAnswer("", "the task of the language model failed")), "the task of the language model failed"),
        (Model(error=MeshError(ErrorKind.INVALID, "no")), "the tasks service takes no such task"),
        (Model(error=MeshError(ErrorKind.UNAVAILABLE, "away")), "no answer came in time"),
        (Model(None), "no answer came in time"),
    ],
    ids=["made up", "failed", "refused", "away", "late"],
)
async def test_the_words_of_facts_stay_where_a_models_are_none(studio: Studio, model: Model, why: str) -> None:
    judge = worker(studio, model, seconds=-1.0)
    await batch(studio, PERSON)
    await judge.run()
    await judge.run()
    [event] = (await studio.http().get("/events")).json()["items"]
    assert event["summary"].startswith("1 photo from camera yard. It shows 1 person.")
    assert event["facts"]["summary_by"] == "facts"
    assert why in event["facts"]["model_text_unused"]
    assert await studio.rows("SELECT text_task_id FROM events") == [(None,)]
    assert model.given_up == (list(model.asked) if model.answer is None and model.error is None else [])


async def test_events_are_listed_by_what_they_are(studio: Studio) -> None:
    judge = worker(studio)
    await batch(studio, PERSON)
    await batch(studio, DARK, DARK, DARK, camera="gate")
    await judge.run()
    http = studio.http()

    async def cameras(**params: Any) -> list[str]:
        return [one["camera_id"] for one in (await http.get("/events", params=params)).json()["items"]]

    assert await cameras() == ["gate", "yard"]
    assert await cameras(camera_id="yard") == ["yard"]
    assert await cameras(risk_level="critical") == ["gate"]
    assert await cameras(risk_level="high") == []
    assert await cameras(min_risk_score=100) == ["gate"]
    assert await cameras(limit=1, offset=1) == ["yard"]
    [gate] = (await http.get("/events", params={"camera_id": "gate"})).json()["items"]
    async with studio.listening() as client:
        for _ in range(2):
            answer = (await http.post(f"/events/{gate['event_id']}/acknowledge")).json()
            assert (answer["reviewed"], answer["reviewed_by"]) == (True, "somebody")
        assert await cameras(reviewed=True) == ["gate"]
        assert await cameras(reviewed=False) == ["yard"]
        deleted = await http.delete(f"/events/{gate['event_id']}")
        assert deleted.json() == {"event_id": gate["event_id"]}
        assert [one["type"] for one in await heard(client, 2)] == ["event.updated", "event.deleted"]
    assert await cameras() == ["yard"]
    missing = await http.delete(f"/events/{gate['event_id']}")
    assert (missing.status_code, missing.json()["detail"]) == (404, f"Event {gate['event_id']} not found")
    assert (await http.get("/events", params={"risk_level": "grave"})).status_code == 422
    assert (await http.get("/events", params={"min_risk_score": 101})).status_code == 422
    assert (await http.get("/events", params={"limit": 101})).status_code == 422
    await judge.run()
    assert await cameras() == ["yard"], "a deleted event is not made again"


async def test_other_tenants_see_no_events_and_readers_change_none(studio: Studio) -> None:
    await batch(studio, PERSON)
    await worker(studio).run()
    [(event_id,)] = await studio.rows("SELECT id FROM events")
    other, reader = studio.http("others"), studio.http(scopes=("read",))
    assert (await other.get("/events")).json()["pagination"]["total"] == 0
    assert (await other.get(f"/events/{event_id}")).status_code == 404
    assert (await other.post(f"/events/{event_id}/acknowledge")).status_code == 404
    assert (await other.delete(f"/events/{event_id}")).status_code == 404
    assert (await reader.post(f"/events/{event_id}/acknowledge")).status_code == 403
    assert (await reader.delete(f"/events/{event_id}")).status_code == 403
    assert (await reader.get(f"/events/{event_id}")).status_code == 200


async def test_rules_that_do_not_hold_refuse_the_start(start_studio: StartStudio, tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('profile = "mine"\n[[risk]]\nrule = "a"\nwords = "b"\npoints = 500\nwhen = { blurred = true }')
    with pytest.raises(
        MeshError, match=r"rules\.toml: risk 1 \(a\), points: Input should be less than or equal to 100\.$"
    ):
        await start_studio(capture_rules=str(file))
