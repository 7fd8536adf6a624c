"""Workflows over HTTP: what each endpoint does, what is refused, and what holds while processes are killed."""

import base64
import io
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from atelier_cli.origin import default_origin
from tests.e2e.harness import ENDED, RunningMesh, until

pytestmark = pytest.mark.timeout(600)

WORKFLOWS = "/api/v1/workflows/"
SHAPE = {"a": [], "b": ["a"], "c": ["a"], "d": ["b", "c"], "e": ["d"], "f": ["d"]}


def step(name: str, needs: list[str], **config: Any) -> dict[str, Any]:
    mapped = [{"from_step": needs[0], "from_field": "result_path", "to_field": "payload"}] if needs else []
    return {
        "id": name,
        "task_type": "NOOP",
        "depends_on": needs,
        "input_mappings": mapped,
        "config": {"steps": 1, "step_ms": 20, "result_bytes": 16, **config},
    }


def diamond(name: str, **config: Any) -> dict[str, Any]:
    steps = [step(one, needs, **config) for one, needs in SHAPE.items()]
    return {"name": name, "origin_instance": "e2e", "steps": steps}


def create(client: httpx.Client, body: dict[str, Any]) -> str:
    key = str(uuid.uuid4())

    def once() -> httpx.Response | None:
        try:
            answer = client.post("/api/v1/workflows/", json=body, headers={"idempotency-key": key})
        except httpx.TransportError:
            return None
        return None if answer.status_code in {502, 503, 504} else answer

    answer = until(once, "a create is answered", 60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def read(client: httpx.Client, ident: str) -> dict[str, Any]:
    def once() -> dict[str, Any] | None:
        try:
            answer = client.get(f"/api/v1/workflows/{ident}")
        except httpx.TransportError:
            return None
        return dict(answer.json()) if answer.status_code == 200 else None

    return until(once, "a workflow is read", 60)


def ended(client: httpx.Client, ident: str, seconds: float = 90) -> dict[str, Any]:
    def once() -> dict[str, Any] | None:
        found = read(client, ident)
        return found if found["status"] in ENDED else None

    return until(once, "a workflow ends", seconds)


def done(client: httpx.Client) -> int:
    try:
        answer = client.get(WORKFLOWS, params={"status": "COMPLETED", "limit": 1})
    except httpx.TransportError:
        return 0
    return int(answer.json()["total"]) if answer.status_code == 200 else 0


def refused(client: httpx.Client, *steps: dict[str, Any], **more: Any) -> list[tuple[list[Any], str]]:
    """Return path and type of each error of a definition."""
    answer = client.post(WORKFLOWS, json={"name": "refused", "origin_instance": "e2e", "steps": list(steps), **more})
    assert answer.status_code == 422, answer.text
    return [(each["loc"], each["type"]) for each in answer.json()["detail"]]


def test_a_large_picture_inside_of_a_step_is_stored_with_its_workflow(mesh: RunningMesh) -> None:
    out = io.BytesIO()
    Image.frombytes("RGB", (400, 400), random.Random(3).randbytes(400 * 400 * 3)).save(out, "PNG")
    image = base64.b64encode(out.getvalue()).decode()
    config = {"input_image": image, "target_width": 64, "target_height": 64}
    steps = [{"id": "a", "task_type": "IMAGE_ADJUSTER", "config": config}]
    body = {"name": "n", "origin_instance": "e2e", "steps": steps}
    with mesh.http("step-files") as client:
        ident = create(client, body)
        path = f"workflows/{ident}/0-input_image.png"
        assert read(client, ident)["steps"][0]["config"]["input_image"] == path
        assert client.get(f"/api/v1/storage/images/{path}").content == out.getvalue()
        task = until(lambda: next(iter(mesh.tasks(client)), None), "its task is made")
        assert task["input_image_path"] == path
        assert mesh.objects("step-files") == {path}
        assert client.delete(f"/api/v1/workflows/{ident}").status_code == 200
        assert client.post(f"/api/v1/workflows/{ident}/cleanup").status_code == 200
        assert mesh.objects("step-files") == set()
        steps[0]["config"] = {**config, "input_image": "A" * 400_000}
        refused = client.post("/api/v1/workflows/", json=body)
        assert refused.status_code == 422
        assert refused.json()["detail"][0]["loc"] == ["body", "steps", 0, "config", "input_image"]
        assert mesh.objects("step-files") == set()


@pytest.fixture(scope="module")
def own_mesh(start_mesh: Callable[..., RunningMesh]) -> RunningMesh:
    """A mesh of its own, whose processes the tests kill."""
    return start_mesh()


def test_a_workflow_that_is_not_started_waits_and_can_be_renamed(mesh: RunningMesh) -> None:
    with mesh.http("workflows-start") as client:
        made = client.post(WORKFLOWS, params={"start": "false"}, json=diamond("draft")).json()
        assert (made["status"], made["total_steps"], made["started_at"]) == ("PENDING", 6, None)
        path = f"{WORKFLOWS}{made['id']}"
        changed = client.patch(path, json={"name": "final", "description": "of spring"})
        assert changed.status_code == 200, changed.text
        assert (changed.json()["name"], changed.json()["description"]) == ("final", "of spring")
        assert [step["task_id"] for step in read(client, made["id"])["steps"]] == [None] * 6
        assert client.post(f"{path}/start").json()["status"] == "RUNNING"
        found = ended(client, made["id"])
        assert (found["status"], found["progress"], found["name"]) == ("COMPLETED", 100, "final")
        assert (found["final_step_id"], found["current_step"]) == ("f", None)
        assert found["final_step_result"] == found["steps"][5]["result"]
        assert client.post(f"{path}/start").status_code == 409


def test_a_list_comes_in_pages_newest_first(mesh: RunningMesh) -> None:
    with mesh.http("workflows-list") as client:
        body = {"name": "one", "origin_instance": "e2e", "steps": [step("a", [])]}
        made = [client.post(WORKFLOWS, params={"start": "false"}, json=body).json()["id"] for _ in range(5)]
        page = client.get(WORKFLOWS, params={"skip": 1, "limit": 2}).json()
        assert [one["id"] for one in page["workflows"]] == made[::-1][1:3]
        assert (page["total"], page["skip"], page["limit"]) == (5, 1, 2)
        assert client.get(WORKFLOWS).json()["limit"] == 50
        assert client.get(WORKFLOWS, params={"status": "RUNNING"}).json()["total"] == 0
        assert client.get(WORKFLOWS, params={"limit": 101}).status_code == 422


def test_a_paused_workflow_ends_what_runs_and_begins_nothing_until_it_is_resumed(mesh: RunningMesh) -> None:
    with mesh.http("workflows-pause") as client:
        # The pause comes before the step ends, also on a busy machine.
        steps = [step("a", [], steps=12, step_ms=500), step("b", ["a"])]
        ident = create(client, {"name": "paused", "origin_instance": "e2e", "steps": steps})
        assert client.post(f"{WORKFLOWS}{ident}/pause").json()["status"] == "PAUSED"
        until(lambda: read(client, ident)["completed_steps"] == 1, "the running step ends")
        found = read(client, ident)
        assert (found["status"], found["progress"], found["steps"][1]["task_id"]) == ("PAUSED", 50, None)
        assert len(mesh.tasks(client)) == 1
        assert client.post(f"{WORKFLOWS}{ident}/resume").json()["status"] == "RUNNING"
        assert ended(client, ident)["status"] == "COMPLETED"
        assert len(mesh.tasks(client)) == 2


def test_a_cancel_stops_what_runs_and_may_be_repeated(mesh: RunningMesh) -> None:
    with mesh.http("workflows-cancel") as client:
        steps = [step("a", [], steps=600, step_ms=100), step("b", ["a"])]
        ident = create(client, {"name": "cancelled", "origin_instance": "e2e", "steps": steps})
        until(lambda: [one["status"] for one in mesh.tasks(client)] == ["EXECUTING"], "the first step is executed")
        assert client.post(f"{WORKFLOWS}{ident}/cleanup").status_code == 409
        assert client.delete(f"{WORKFLOWS}{ident}").json()["status"] == "CANCELLED"
        [task] = mesh.wait_ended(client, 1, 60)
        assert task["status"] == "CANCELLED"
        assert [one["status"] for one in read(client, ident)["steps"]] == ["CANCELLED", "CANCELLED"]
        again = client.delete(f"{WORKFLOWS}{ident}")
        assert (again.status_code, again.json()["status"]) == (200, "CANCELLED")
        whole = create(client, {"name": "whole", "origin_instance": "e2e", "steps": [step("a", [])]})
        assert ended(client, whole)["status"] == "COMPLETED"
        assert client.delete(f"{WORKFLOWS}{whole}").status_code == 409


def test_a_cleanup_hides_the_workflow_and_deletes_its_files(mesh: RunningMesh) -> None:
    with mesh.http(tenant := "workflows-cleanup") as client:
        ident = create(client, diamond("cleaned"))
        assert ended(client, ident)["status"] == "COMPLETED"
        files = mesh.objects(tenant)
        assert len(files) == 6
        answer = client.post(f"{WORKFLOWS}{ident}/cleanup")
        assert answer.status_code == 200, answer.text
        assert answer.json()["workflow"]["is_deleted"] is True
        report = answer.json()["cleanup"]
        assert (report["tasks_processed"], report["tasks_cleaned"], report["errors"]) == (6, 6, [])
        assert set(report["deleted_paths"]) == files
        assert mesh.objects(tenant) == set()
        assert client.get(WORKFLOWS).json()["total"] == 0
        assert client.get(WORKFLOWS, params={"include_deleted": "true"}).json()["total"] == 1


def test_what_is_wrong_with_a_definition_is_told_where_it_is(mesh: RunningMesh) -> None:
    def mapped(**mapping: str) -> dict[str, Any]:
        given = {"from_step": "a", "from_field": "result_path", "to_field": "payload", **mapping}
        return {**step("b", []), "depends_on": ["a"], "input_mappings": [given]}

    a, at = step("a", []), ["body", "steps", 1]
    mapping = [*at, "input_mappings", 0]
    with mesh.http("workflows-refused") as client:
        assert refused(client, a, step("a", [])) == [([*at, "id"], "duplicate_step")]
        assert refused(client, a, {**step("b", []), "depends_on": ["a", "x"]}) == [
            ([*at, "depends_on", 1], "unknown_step")
        ]
        assert refused(client, a, {**step("b", []), "depends_on": ["b"]}) == [
            ([*at, "depends_on", 0], "self_dependency")
        ]
        cycle = [{**step("b", []), "depends_on": ["c"]}, {**step("c", []), "depends_on": ["b"]}]
        assert refused(client, a, *cycle) == [([*at, "depends_on", 0], "cycle")]
        assert refused(client, a, {**step("b", []), "task_type": "EXPERIMENTAL_FAL"})[0] == (
            [*at, "task_type"],
            "task_type_not_served",
        )
        for wrong, member in (
            ({"from_step": "x"}, "from_step"),
            ({"from_field": "x"}, "from_field"),
            ({"to_field": "x"}, "to_field"),
            ({"transform": "reverse"}, "transform"),
        ):
            assert [loc for loc, _ in refused(client, a, mapped(**wrong))] == [[*mapping, member]]
        assert [loc for loc, _ in refused(client, a, step("b", [], steps="many"))] == [[*at, "config", "steps"]]
        assert [loc for loc, _ in refused(client, a, config={"on_failure": "ignore"})] == [
            ["body", "config", "on_failure"]
        ]
        assert [loc for loc, _ in refused(client, *(step(f"s{at}", []) for at in range(201)))] == [["body", "steps"]]
        assert client.get(WORKFLOWS).json()["total"] == 0


def each(name: str, needs: list[str], listed: dict[str, Any], **config: Any) -> dict[str, Any]:
    mapped = [{"from_step": "$item", "from_field": "value", "to_field": "payload"}]
    return {**step(name, needs, **config), "input_mappings": mapped, "for_each": listed}


def test_a_step_has_a_task_for_each_item_of_a_list(mesh: RunningMesh) -> None:
    with mesh.http(tenant := "workflows-items") as client:
        steps = [
            each("all", [], {"items": ["one", "two", "three"], "max_parallel": 2}, step_ms=100),
            each("files", ["all"], {"from_step": "all", "from_field": "result_path"}),
            each("none", ["files"], {"items": []}),
        ]
        ident = create(client, {"name": "items", "origin_instance": "e2e", "steps": steps})
        running = until(lambda: read(client, ident)["steps"][0]["items"], "the list is known")
        assert [one["value"] for one in running] == ["one", "two", "three"]
        assert read(client, ident)["steps"][0]["for_each"]["max_parallel"] == 2
        found = ended(client, ident)
        assert found["status"] == "COMPLETED", found["errors"]
        assert (found["total_steps"], found["completed_steps"], found["progress"]) == (3, 3, 100)
        first, second, third = found["steps"]
        assert [one["payload"] for one in first["result"]["items"]] == ["one", "two", "three"]
        assert (first["task_id"], first["result"]["count"]) == (None, 3)
        assert [one["value"] for one in second["items"]] == [one["result_path"] for one in first["result"]["items"]]
        assert found["final_step_result"] == third["result"] == {"count": 0, "items": []}
        assert third["items"] is None
        assert {one["id"] for one in mesh.tasks(client)} == {
            one["task_id"] for told in (first, second) for one in told["items"]
        }
        monitored = client.get(f"/api/v1/monitoring/workflows/{ident}").json()
        assert [len(one["items"] or ()) for one in monitored["steps"]] == [3, 3, 0]
        at = ["body", "steps", 0, "for_each"]
        assert refused(client, each("a", [], {"items": ["x"] * 201})) == [([*at, "items"], "too_many_items")]
        assert refused(client, each("a", [], {"items": ["x", 1]})) == [([*at, "items", 1], "type_error")]
        assert refused(client, each("a", [], {"items": ["x"], "max_parallel": 0}))[0][0] == [*at, "max_parallel"]
        assert refused(client, each("a", [], {})) == [([*at, "from_step"], "missing")]
        assert len(mesh.objects(tenant)) == 6
        assert client.post(f"{WORKFLOWS}{ident}/cleanup").json()["cleanup"]["tasks_cleaned"] == 6
        assert mesh.objects(tenant) == set()


def test_items_survive_a_kill_and_make_each_task_once(own_mesh: RunningMesh) -> None:
    mesh = own_mesh
    with mesh.http(tenant := "workflows-items-killed") as client:
        names = [str(at) for at in range(12)]
        steps = [each("all", [], {"items": names, "max_parallel": 3}, step_ms=1500), step("end", ["all"])]
        steps[1]["input_mappings"] = []
        ident = create(client, {"name": "items", "origin_instance": "e2e", "steps": steps})
        until(lambda: len(mesh.tasks(client)) >= 5, "some items have been begun")
        before = mesh.restarts("workflows")
        assert read(client, ident)["status"] == "RUNNING", "the kill would come after the work"
        mesh.kill("workflows")
        mesh.wait_restarted("workflows", before)
        found = ended(client, ident, 150)
        assert found["status"] == "COMPLETED", found["errors"]
        assert [one["payload"] for one in found["steps"][0]["result"]["items"]] == names
        with mesh.database() as connection:
            rows = connection.execute("SELECT id FROM tasks.tasks WHERE tenant = %s", (tenant,)).fetchall()
    assert len(rows) == 13, "an item's task was made twice, or not at all"


def test_no_other_tenant_sees_or_moves_a_workflow(mesh: RunningMesh) -> None:
    with mesh.http("workflows-owner") as client:
        ident = client.post(WORKFLOWS, params={"start": "false"}, json=diamond("secret")).json()["id"]
        before = read(client, ident)
    with mesh.http("workflows-stranger") as client:
        assert client.get(WORKFLOWS).json()["total"] == 0
        assert client.get(WORKFLOWS, params={"origin_tenant_id": "workflows-owner"}).json()["total"] == 0
        path = f"{WORKFLOWS}{ident}"
        answers = [client.get(path), client.patch(path, json={"name": "mine"}), client.delete(path)]
        answers += [client.post(f"{path}/{move}") for move in ("start", "pause", "resume", "cleanup")]
        assert [answer.status_code for answer in answers] == [404] * 7
        named = client.post(WORKFLOWS, json={**diamond("theirs"), "origin_tenant_id": "workflows-owner"})
        assert named.status_code == 403
    with mesh.http("workflows-owner") as client:
        assert read(client, ident) == before


def test_the_command_line_runs_watches_moves_and_draws_workflows(mesh: RunningMesh, tmp_path: Path) -> None:
    file = tmp_path / "w.json"
    steps = [step("a", [], steps=10, step_ms=100), step("b", ["a"])]
    file.write_text(json.dumps({"name": "by hand", "steps": steps}))
    tenant = ("--tenant", "workflows-cli")
    ran = mesh.cli("workflow", "run", str(file), "--watch", *tenant)
    assert ran.returncode == 0, ran.stderr
    ident = ran.stdout.strip()
    found = json.loads(mesh.cli("workflow", "get", ident, *tenant).stdout)
    assert (found["status"], found["origin_instance"]) == ("COMPLETED", default_origin())
    drawn = mesh.cli("workflow", "graph", ident, *tenant)
    assert drawn.stdout.startswith("<svg")
    assert drawn.stdout.count("NOOP  completed</text>") == 2
    # Runs for ten minutes, so that it still does when the next command gets through.
    file.write_text(json.dumps({"name": "slow", "steps": [step("a", [], steps=6000, step_ms=100)]}))
    waiting = mesh.cli("workflow", "run", str(file), "--no-start", *tenant).stdout.strip()
    assert mesh.cli("workflow", "start", waiting, *tenant).stdout == f"{waiting} RUNNING\n"
    assert mesh.cli("workflow", "pause", waiting, *tenant).stdout == f"{waiting} PAUSED\n"
    assert mesh.cli("workflow", "cancel", waiting, *tenant).stdout == f"{waiting} CANCELLED\n"
    listed = json.loads(mesh.cli("workflow", "list", "--json", *tenant).stdout)
    assert [one["id"] for one in listed] == [waiting, ident]
    refused_again = mesh.cli("workflow", "resume", ident, *tenant)
    assert (refused_again.returncode, "409" in refused_again.stderr) == (1, True)


@pytest.mark.parametrize("count", [10, pytest.param(50, marks=pytest.mark.long)])
@pytest.mark.parametrize("role", ["workflows", "tasks", "nats", "worker"])
def test_whatever_is_killed_every_workflow_completes_and_makes_each_task_once(
    own_mesh: RunningMesh, role: str, count: int
) -> None:
    mesh = own_mesh
    with mesh.http(tenant := f"workflows-{role}-{count}") as client:
        with ThreadPoolExecutor(8) as pool:
            # The four slots of the worker have six seconds of work, however fast all else is.
            body = diamond(role, step_ms=4000 // count)
            made = list(pool.map(lambda _: create(client, body), range(count)))
        until(lambda: done(client) >= count // 10, "some have completed")
        before = mesh.restarts(role)
        assert done(client) < count, "the kill would come after the work"
        mesh.kill(role)
        mesh.wait_restarted(role, before)
        for ident in made:
            found = ended(client, ident, 150)
            assert found["status"] == "COMPLETED", found["errors"]
            assert (found["completed_steps"], found["progress"]) == (len(SHAPE), 100)
        with mesh.database() as connection:
            rows = connection.execute("SELECT workflow_id FROM tasks.tasks WHERE tenant = %s", (tenant,)).fetchall()
    made_tasks = Counter(str(row[0]) for row in rows)
    assert made_tasks == dict.fromkeys(made, len(SHAPE)), "a step's task was made twice, or not at all"


def test_a_resume_makes_only_the_tasks_that_are_left(mesh: RunningMesh) -> None:
    with mesh.http(tenant := "workflows-resume") as client:
        body = diamond("resumed")
        # More failures than the tasks service's own retries at the first try, none left for the second.
        body["steps"][3] |= {"config": {"steps": 1, "failures": 1000}, "max_retries": 0}
        ident = create(client, body)
        failed = ended(client, ident)
        assert failed["status"] == "FAILED"
        assert failed["completed_steps"] == 3
        assert client.post(f"/api/v1/workflows/{ident}/resume").status_code == 200
        until(lambda: read(client, ident)["status"] == "FAILED", "it fails again", 90)
        with mesh.database() as connection:
            rows = connection.execute("SELECT id FROM tasks.tasks WHERE tenant = %s", (tenant,)).fetchall()
    assert len(rows) == 5, "three results were reused, and the failed step was tried once more"
