"""Events become alerts by rules; callers answer them, and webhooks are told."""

from __future__ import annotations

import asyncio
import json
from uuid import uuid4

import pytest
from atelier.events.v1 import events_pb2

from meshkit.errors import ErrorKind, MeshError
from services.monitoring.capture.alerts.domain import AlertHandover
from services.monitoring.capture.alerts.service import WebhookHandovers
from services.monitoring.capture.analysis.rules import parse_rules
from services.monitoring.capture.analysis.service import AnalysisWorker
from services.monitoring.capture.postgres.alerts import PostgresAlertStore
from services.monitoring.capture.postgres.events import PostgresEventStore
from tests.integration.capture.conftest import StartStudio, Studio
from tests.integration.capture.judged import DARK, NOBODY, batch, quiet

_RULES = """
profile = "mine"
[[risk]]
rule = "blurred"
words = "it is blurred"
points = 70
when = { blurred = true }
[[alert]]
rule = "look"
severity = "warning"
score_least = 60
message = "{camera} {level}"
[[alert]]
rule = "calm"
severity = "info"
score_least = 0
cameras = ["gate"]
pause_seconds = 3600
webhook_url = "https://hooks.example/gate"
"""


class Door:
    """Takes what webhooks are told, or refuses it."""

    def __init__(self) -> None:
        self.taken: list[AlertHandover] = []
        self.error: MeshError | None = None

    async def hand_in(self, handover: AlertHandover) -> None:
        if self.error is not None:
            raise self.error
        self.taken.append(handover)


@pytest.fixture
async def studio(start_studio: StartStudio) -> Studio:
    return await quiet(start_studio, capture_webhook_url="https://hooks.example/all")


def worker(studio: Studio) -> AnalysisWorker:
    return AnalysisWorker(
        PostgresEventStore(studio.capture.changes),
        parse_rules(_RULES),
        None,
        answer_seconds=60.0,
        webhook_url="https://hooks.example/all",
        on_alerts=lambda: None,
    )


async def test_an_event_raises_the_alerts_of_its_rules_once(studio: Studio) -> None:
    async with studio.listening() as client:
        batch_id = await batch(studio, DARK, camera="gate")
        await asyncio.gather(*(worker(studio).judge(batch_id) for _ in range(3)))
        async with asyncio.timeout(60):
            told = [json.loads(await client.recv()) for _ in range(3)]
    assert [one["type"] for one in told] == ["event.created", "alert.created", "alert.created"]
    listed = (await studio.http().get("/alerts")).json()
    assert listed["pagination"]["total"] == 2
    assert sorted((one["rule"], one["severity"], one["state"]) for one in listed["items"]) == [
        ("calm", "info", "open"),
        ("look", "warning", "open"),
    ]
    by_id = {one["alert_id"]: one for one in listed["items"]}
    for one in told[1:]:
        shown = by_id[one["data"]["alert_id"]]
        assert one["data"] == {name: shown[name] for name in one["data"]}
    assert {one["message"] for one in listed["items"]} >= {"gate high"}


async def test_a_rule_pauses_for_each_camera(studio: Studio) -> None:
    for camera in ("gate", "gate", "yard"):
        await worker(studio).judge(await batch(studio, NOBODY, camera=camera))
    assert await studio.rows("SELECT camera_id, rule FROM alerts") == [("gate", "calm")]
    await studio.rows("UPDATE alerts SET created_at = created_at - interval '2 hours'")
    await worker(studio).judge(await batch(studio, NOBODY, camera="gate"))
    assert await studio.rows("SELECT count(*) FROM alerts") == [(2,)]


async def test_alerts_are_acknowledged_and_dismissed(studio: Studio) -> None:
    http = studio.http()
    async with studio.listening() as client:
        await worker(studio).judge(await batch(studio, DARK))
        [alert] = (await http.get("/alerts")).json()["items"]
        path = f"/alerts/{alert['alert_id']}"
        for _ in range(2):
            answer = (await http.post(f"{path}/acknowledge")).json()
            assert (answer["state"], answer["acknowledged_by"]) == ("acknowledged", "somebody")
        assert (await http.get("/alerts", params={"state": "open"})).json()["items"] == []
        assert (await http.get("/alerts", params={"state": "acknowledged"})).json()["items"] == [answer]
        assert (await http.post(f"{path}/dismiss")).json()["state"] == "dismissed"
        late = await http.post(f"{path}/acknowledge")
        assert (late.status_code, late.json()["detail"]) == (409, f"Alert {alert['alert_id']} was dismissed")
        async with asyncio.timeout(60):
            told = [json.loads(await client.recv()) for _ in range(4)]
    created = ["event.created", "alert.created"]
    assert [one["type"] for one in told] == [*created, "alert.acknowledged", "alert.dismissed"]
    assert (await http.get(path)).json()["dismissed_by"] == "somebody"
    for params, count in (({"severity": "warning"}, 1), ({"severity": "info"}, 0), ({"camera_id": "gate"}, 0)):
        assert (await http.get("/alerts", params=params)).json()["pagination"]["total"] == count
    by_event = (await http.get("/alerts", params={"event_id": alert["event_id"]})).json()
    assert by_event["pagination"]["total"] == 1


async def test_webhooks_are_told_once_of_each_turn(studio: Studio) -> None:
    await worker(studio).judge(await batch(studio, DARK, camera="gate"))
    http = studio.http()
    [look] = (await http.get("/alerts", params={"severity": "warning"})).json()["items"]
    await http.post(f"/alerts/{look['alert_id']}/acknowledge")
    await http.post(f"/alerts/{look['alert_id']}/dismiss")
    door = Door()
    door.error = MeshError(ErrorKind.UNAVAILABLE, "away")
    handovers = WebhookHandovers(PostgresAlertStore(studio.capture.changes), door)
    with pytest.raises(MeshError):
        await handovers.run()
    door.error = None
    await handovers.run()
    await handovers.run()
    told = [(one.url, one.version, events_pb2.AlertStatusEvent.FromString(one.event)) for one in door.taken]
    assert [(url, version, event.rule, event.status) for url, version, event in told] == [
        ("https://hooks.example/all", 1, "look", "open"),
        ("https://hooks.example/gate", 1, "calm", "open"),
        ("https://hooks.example/all", 2, "look", "acknowledged"),
        ("https://hooks.example/all", 3, "look", "dismissed"),
    ]
    assert (told[0][2].risk_score, told[0][2].risk_level, told[0][2].camera_id) == (70, "high", "gate")
    assert told[0][2].summary.startswith("1 photo from camera gate.")


async def test_an_address_that_nothing_may_be_sent_to_holds_up_no_other(studio: Studio) -> None:
    await worker(studio).judge(await batch(studio, DARK))
    door = Door()
    door.error = MeshError(ErrorKind.INVALID, "no")
    await WebhookHandovers(PostgresAlertStore(studio.capture.changes), door).run()
    assert await studio.rows("SELECT count(*) FROM webhook_handovers") == [(0,)]


async def test_other_tenants_see_no_alerts_and_readers_answer_none(studio: Studio) -> None:
    await worker(studio).judge(await batch(studio, DARK))
    [(alert_id,)] = await studio.rows("SELECT id FROM alerts")
    other, reader = studio.http("others"), studio.http(scopes=("read",))
    assert (await other.get("/alerts")).json()["pagination"]["total"] == 0
    assert (await other.get(f"/alerts/{alert_id}")).status_code == 404
    assert (await other.post(f"/alerts/{alert_id}/dismiss")).status_code == 404
    assert (await reader.post(f"/alerts/{alert_id}/acknowledge")).status_code == 403
    assert (await reader.get(f"/alerts/{alert_id}")).status_code == 200
    missing = await studio.http().post(f"/alerts/{uuid4()}/acknowledge")
    assert missing.status_code == 404
