"""Capture as a whole: photos of three cameras land, and whoever listens learns what they show."""

import http.server
import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from standardwebhooks import Webhook
from websockets.sync.client import ClientConnection, connect

from examples.capture.shoot import SHOTS, shoot
from tests.documented import documented
from tests.e2e.harness import RunningMesh, until

pytestmark = pytest.mark.timeout(600)

_LOOPS = {"file_watcher", "detection_worker", "batch_aggregator", "analysis_worker", "cleanup_service"}
# Who a person sees on the photos of each camera (tests/unit/modelkit/data/people/expected.json).
_PEOPLE = {"studio-a": 1, "studio-b": 1, "gate": 0}
_RULES = """
profile = "doors"
[[risk]]
rule = "people"
words = "somebody is in the picture"
when = { people_least = 1 }
points = 70
[[risk]]
rule = "blurred"
words = "it is blurred"
when = { blurred = true }
points = 10
[[risk]]
rule = "dark"
words = "it is too dark"
when = { exposure = ["under"] }
points = 5
[[alert]]
rule = "somebody_there"
severity = "critical"
score_least = 60
message = "{camera}: somebody is there ({score})"
"""


class Hook:
    """Takes webhooks."""

    def __init__(self) -> None:
        self.taken: list[tuple[bytes, dict[str, str]]] = []
        taken = self.taken

        class Taker(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                taken.append((body, {name.lower(): value for name, value in self.headers.items()}))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Taker)
        self.address = f"127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture(scope="module")
def hook() -> Iterator[Hook]:
    made = Hook()
    thread = threading.Thread(target=made.server.serve_forever)
    thread.start()
    yield made
    made.server.shutdown()
    thread.join()
    made.server.server_close()


@pytest.fixture(scope="module")
def cameras(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cameras")
    (root.parent / "rules.toml").write_text(_RULES, encoding="utf-8")
    return root


@pytest.fixture(scope="module")
def studio(start_mesh: Callable[..., RunningMesh], cameras: Path, hook: Hook) -> RunningMesh:
    return start_mesh(
        ATELIER_CAMERA_ROOT=str(cameras),
        ATELIER_CAPTURE_RULES=str(cameras.parent / "rules.toml"),
        ATELIER_CAPTURE_WEBHOOK_URL=f"http://{hook.address}/hook",
        ATELIER_CAPTURE_IDLE_SECONDS="10",
        ATELIER_FETCH_ALLOW_PRIVATE=hook.address,
        ATELIER_WORKER_TASK_TYPES="PHOTO_DETECTION,LLM_INTERACTION",
        ATELIER_TORCH_THREADS="1",
        ATELIER_WORKER_SLOTS="1",
        ATELIER_STEP_DEADLINE_SECONDS="60",
        ATELIER_FIRST_STEP_DEADLINE_SECONDS="120",
    )


@pytest.fixture(scope="module")
def heard(studio: RunningMesh, cameras: Path) -> Iterator[list[dict[str, Any]]]:
    """What a listener heard from before the first photo on, until all events and alerts were told."""
    with connect(f"ws{studio.url.removeprefix('http')}/ws/events?token={studio.token()}") as socket:
        socket.send('{"type": "subscribe", "data": {"events": ["detection.*", "event.*", "alert.*", "camera.*"]}}')
        socket.recv(timeout=60)
        shoot(cameras)
        messages: list[dict[str, Any]] = []

        def told(kind: str) -> int:
            return sum(one["type"] == kind for one in messages)

        while told("event.created") < 3 or told("alert.created") < 2:
            _hear(socket, messages)
        yield messages


def _hear(socket: ClientConnection, messages: list[dict[str, Any]]) -> None:
    message = json.loads(socket.recv(timeout=120))
    if message["type"] != "ping":
        messages.append(message)


def listed(client: httpx.Client, what: str, **params: Any) -> list[dict[str, Any]]:
    answer = client.get(f"/api/capture/{what}", params={"limit": 100, **params})
    assert answer.status_code == 200, answer.text
    return list(answer.json()["items"])


def test_each_photo_is_looked_at_once_and_each_batch_is_one_event(
    studio: RunningMesh, heard: list[dict[str, Any]]
) -> None:
    with studio.http() as client:
        photos, batches, events = (listed(client, what) for what in ("photos", "batches", "events"))
        assert [one["camera_id"] for one in listed(client, "cameras")] == ["gate", "studio-a", "studio-b"]
        tasks = [one for one in studio.tasks(client) if one["task_type"] == "PHOTO_DETECTION"]
    assert Counter(one["camera_id"] for one in photos) == Counter(camera for camera, _, _ in SHOTS)
    assert {one["state"] for one in photos} == {"DETECTED"}
    assert sorted(one["id"] for one in tasks) == sorted(one["task_id"] for one in photos)
    assert Counter(one["camera_id"] for one in batches) == {"gate": 1, "studio-a": 1, "studio-b": 1}
    assert {one["state"] for one in batches} == {"analysed"}
    assert sorted(one["batch_id"] for one in events) == sorted(one["batch_id"] for one in batches)
    created = [one["data"] for one in heard if one["type"] == "event.created"]
    assert sorted(one["event_id"] for one in created) == sorted(one["event_id"] for one in events)


def test_events_say_what_the_photos_show(studio: RunningMesh, heard: list[dict[str, Any]]) -> None:
    del heard
    with studio.http() as client:
        by_camera = {one["camera_id"]: one for one in listed(client, "events")}
    shots = Counter(camera for camera, _, _ in SHOTS)
    for camera, event in by_camera.items():
        assert (event["facts"]["people_most"], event["facts"]["photos"]) == (_PEOPLE[camera], shots[camera])
        if event["facts"]["summary_by"] == "facts":
            plural = "" if shots[camera] == 1 else "s"
            assert event["summary"].startswith(f"{shots[camera]} photo{plural} from camera {camera}. ")
    spoiled = by_camera["studio-a"]
    assert {one["rule"]: one["photos"] for one in spoiled["facts"]["rules"]} == {"people": 4, "blurred": 1, "dark": 1}
    assert (spoiled["risk_score"], spoiled["risk_level"]) == (85, "critical")
    assert spoiled["reasoning"] == (
        "The score is 85 of 100, critical. What counts: 4 of 4 photos: somebody is in the picture (+70); 1 of 4 "
        "photos: it is blurred (+10); 1 of 4 photos: it is too dark (+5)."
    )
    assert (by_camera["gate"]["risk_score"], by_camera["gate"]["risk_level"]) == (0, "low")


def test_listeners_hear_what_the_registry_says(studio: RunningMesh, heard: list[dict[str, Any]]) -> None:
    with studio.http(scopes=("read", "operator")) as client:
        registry = {one["type"]: one for one in client.get("/api/system/websocket/events").json()["event_types"]}
    told = {one["type"] for one in heard}
    assert told >= {"detection.new", "detection.batch", "event.created", "alert.created", "camera.status_changed"}
    for one in heard:
        assert set(one["data"]) <= set(registry[one["type"]]["payload_schema"]["properties"]), one


def test_alerts_are_told_by_webhooks_and_answered(studio: RunningMesh, hook: Hook, heard: list[dict[str, Any]]) -> None:
    raised = {one["data"]["alert_id"]: one["data"] for one in heard if one["type"] == "alert.created"}
    assert sorted(one["message"].split(" (")[0] for one in raised.values()) == [
        "studio-a: somebody is there",
        "studio-b: somebody is there",
    ]
    with studio.http(scopes=("read", "write", "admin")) as client:
        until(lambda: len(hook.taken) >= 2, "both alerts were sent")
        alert_id = next(iter(raised))
        answer = client.post(f"/api/capture/alerts/{alert_id}/acknowledge").json()
        assert answer["state"] == "acknowledged"
        until(lambda: len(hook.taken) >= 3, "the answer was sent")
        secret = Webhook(client.get("/api/v1/webhooks/secret").json()["key"])
    bodies = [secret.verify(body, headers) for body, headers in hook.taken]
    assert {one["event_type"] for one in bodies} == {"alert_status_update"}
    assert sorted((one["alert_id"], one["status"]) for one in bodies) == sorted(
        [*((one, "open") for one in raised), (alert_id, "acknowledged")]
    )


def test_the_system_shows_it_true(studio: RunningMesh, cameras: Path, heard: list[dict[str, Any]]) -> None:
    del heard
    with studio.http(scopes=("read", "operator")) as client:

        def watched() -> dict[str, Any] | None:
            found: dict[str, Any] = client.get("/api/system/pipeline").json()
            return found if found["file_watcher"]["running"] and found["batch_aggregator"] else None

        pipeline = until(watched, "capture answers in the time that monitoring gives it")
        documented("GET", "/api/system/pipeline").holds(pipeline)
        assert pipeline["file_watcher"]["camera_root"] == str(cameras)
        assert pipeline["file_watcher"]["pending_tasks"] == 0
        aggregator = pipeline["batch_aggregator"]
        assert (aggregator["active_batches"], aggregator["batches"]) == (0, [])
        assert (aggregator["batch_window_seconds"], aggregator["idle_timeout_seconds"]) == (90, 10)

        def kept() -> dict[str, Any] | None:
            shown = client.get("/api/system/supervisor").json()["workers"]
            found = {one["name"]: one["status"] for one in shown}
            return found if found.keys() >= _LOOPS else None

        loops = until(kept, "all loops are known")
        assert {loops[name] for name in _LOOPS} == {"running"}

        def well() -> dict[str, Any] | None:
            health = client.get("/api/system/health/full")
            return dict(health.json()) if health.status_code == 200 else None

        health = until(well, "all is well")
        watcher = next(one for one in health["workers"] if one["name"] == "file_watcher")
    assert (watcher["running"], watcher["critical"]) == (True, True)
    documented("GET", "/api/system/health/full").holds(health)
