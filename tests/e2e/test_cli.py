"""The command line: a newcomer's first mesh, its restart, two meshes side by side."""

import json
import os
import stat
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from atelier_cli.embedded.process import free_ports
from tests.e2e.harness import ATELIER, RunningMesh, ended_task, parse_status, until

pytestmark = pytest.mark.timeout(600)

SERVICES = {"gateway", "tasks", "workflows", "training", "monitoring", "evaluation", "worker", "trainer"}
ROLES = SERVICES | {"nats", "postgres", "s3"}


class Shell:
    """`atelier` on one data folder, with the model that ships."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.port = free_ports(1)[0]

    def run(self, *arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*ATELIER, *arguments, "--data", str(self.path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=240,
            cwd=self.path.parent,
        )
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def up(self) -> None:
        self.run("up", "--detach", "--port", str(self.port))

    def status(self) -> dict[str, dict[str, Any]]:
        return parse_status(self.run("status", "--json").stdout)

    def healthy(self) -> dict[str, dict[str, Any]]:
        """The status once all are healthy: each is asked in bounded time, which a busy machine may exceed."""

        def told() -> dict[str, dict[str, Any]] | None:
            found = self.status()
            return found if {each["health"] for each in found.values()} == {"healthy"} else None

        return until(told, "all are healthy")

    def token(self, *arguments: str) -> str:
        return self.run("token", *arguments).stdout.strip()


@pytest.fixture(scope="module")
def shells(servers_folder: Path) -> Iterator[list[Shell]]:
    """Two folders; the first has a mesh."""
    shells = []
    for _ in range(2):
        parent = Path(tempfile.mkdtemp(dir=servers_folder))
        parent.chmod(0o711)
        shells.append(Shell(parent / "data"))
    shells[0].up()
    yield shells
    for shell in shells:
        shell.run("down")


@pytest.fixture(scope="module")
def shell(shells: list[Shell]) -> Shell:
    return shells[0]


def test_every_role_is_healthy_and_named_with_its_process(shell: Shell) -> None:
    status = shell.healthy()
    assert set(status) == ROLES
    for each in status.values():
        assert set(each) - {"metrics"} == {"name", "pid", "role", "health"}
        assert Path(f"/proc/{each['pid']}").exists()


def test_each_service_serves_metrics_at_the_address_that_the_status_names(shell: Shell) -> None:
    pages = {name: each["metrics"] for name, each in shell.status().items() if "metrics" in each}
    assert set(pages) == SERVICES
    for name, metric in (("worker", "atelier_worker_slots "), ("tasks", "atelier_outbox_oldest_unpublished_seconds ")):
        page = httpx.get(pages[name], timeout=60)
        assert page.status_code == 200
        assert metric in page.text
    assert all(httpx.get(page, timeout=60).status_code == 200 for page in pages.values())


def test_the_supervisor_knows_the_loops_of_every_service(shell: Shell) -> None:
    headers = {"authorization": f"Bearer {shell.token('--scopes', 'read')}"}

    def names() -> set[str]:
        body = httpx.get(f"http://127.0.0.1:{shell.port}/api/system/supervisor", headers=headers, timeout=60).json()
        return {one["name"] for one in body["workers"] if one["status"] == "running"}

    wanted = {"tasks_expiry", "workflows_reconcile", "trainings_jobs", "monitoring_record", "outbox_tasks"}
    until(lambda: names() >= wanted, "every service has told of its loops")


def test_table_of_the_status_names_every_role(shell: Shell) -> None:
    text = shell.run("status").stdout
    assert all(role in text for role in ROLES)


def test_secrets_are_private_to_their_owner(shell: Shell) -> None:
    file = shell.path / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    # The access key is a name, not a secret; the store writes it into its log.
    secrets = [secret for name, secret in json.loads(file.read_text()).items() if name != "s3_access_key"]
    logs = "".join(log.read_text(errors="replace") for log in (shell.path / "logs").iterdir())
    assert not any(secret in logs for secret in secrets)


def test_token_prints_the_token_alone_and_it_is_taken(shell: Shell) -> None:
    token = shell.token("--tenant", "acme", "--scopes", "read")
    assert token.count(".") == 2
    assert "\n" not in token
    url = f"http://127.0.0.1:{shell.port}/api/v1/tasks/"
    headers = {"authorization": f"Bearer {token}"}
    assert httpx.get(url, headers=headers, timeout=60).status_code == 200
    body = {"task_type": "GENERATION", "origin_instance": "e2e", "prompt": "x"}
    assert httpx.post(url, headers=headers, json=body, timeout=60).status_code == 403


def test_unknown_scope_is_wrong_use(shell: Shell) -> None:
    assert "unknown scope: fly" in shell.run("token", "--scopes", "fly", code=2).stderr


def test_second_up_says_that_a_mesh_runs(shell: Shell) -> None:
    for arguments in ((), ("--detach",)):
        said = shell.run("up", *arguments, code=1).stderr
        assert "already runs" in said
        assert f"http://127.0.0.1:{shell.port}" in said


def test_taken_port_is_told(shells: list[Shell]) -> None:
    said = shells[1].run("up", "--port", str(shells[0].port), code=1).stderr
    assert f"Port {shells[0].port} is taken" in said


def test_generate_saves_a_picture_and_the_seed_repeats_it(shell: Shell, tmp_path: Path) -> None:
    pictures = []
    for name in ("one.png", "two.png"):
        target = tmp_path / name
        size = ("--width", "128", "--height", "192", "--seed", "7")
        said = shell.run("generate", "a red dress", *size, "-o", str(target))
        assert "seed 7, 128x192" in said.stdout
        with Image.open(target) as picture:
            assert picture.size == (128, 192)
            pictures.append(picture.convert("RGB").tobytes())
    assert pictures[0] == pictures[1]


def test_generate_says_what_was_wrong_and_saves_nothing(shell: Shell, tmp_path: Path) -> None:
    target = tmp_path / "none.png"
    said = shell.run("generate", "a red dress", "--width", "3", "-o", str(target), code=1).stderr
    assert "width" in said
    said = shell.run("generate", "x", "--lora", "styles/none.safetensors", "-o", str(target), code=1).stderr
    assert "style_model_path" in said
    assert not target.exists()


def test_top_shows_what_runs_what_has_failed_and_who_works(mesh: RunningMesh) -> None:
    tenant = f"top{uuid.uuid4().hex[:8]}"
    with mesh.http(tenant) as client:
        failed = ended_task(client, mesh.create(client, str(uuid.uuid4()), failures=100)["id"])
        assert failed["status"] == "FAILED"
        running = mesh.create(client, str(uuid.uuid4()), steps=600, step_ms=200)["id"]
        path = f"/api/v1/monitoring/tasks/{running}"
        until(lambda: client.get(path).json()["progress"] > 0, "it runs")
        shown = mesh.cli("top", "--once", "--tenant", tenant)
        everyone = mesh.cli("top", "--once", "--all")
        workers = client.get("/api/v1/monitoring/workers").json()["workers"]
        assert client.post(f"/api/v1/tasks/{running}/cancel").status_code == 200
    assert (shown.returncode, everyone.returncode) == (0, 0), shown.stderr + everyone.stderr
    lines = [line.split() for line in shown.stdout.splitlines() if line.strip()]
    head = " ".join(lines[0])
    assert "0 waiting, 1 running, 1 failed; 1 workers, " in head
    datetime.fromisoformat(head[:19])
    [queue] = [line for line in lines if line[0] == "inference"]
    assert queue[1:3] == ["0", "1"]
    assert [line[0] for line in lines if line[0] == workers[0]["name"]], "the worker has a line"
    [run] = [line for line in lines if line[0] == running]
    assert (run[1], run[3], run[-1]) == ("NOOP", tenant, "%")
    [fail] = [line for line in lines if line[0] == failed["id"]]
    assert (fail[1], fail[3]) == ("NOOP", tenant)
    assert running in everyone.stdout


def test_tasks_are_listed_shown_and_watched(shell: Shell, tmp_path: Path) -> None:
    size = ("--width", "64", "--height", "64")
    shell.run("generate", "a blue sneaker", *size, "-o", str(tmp_path / "a.png"))
    task = json.loads(shell.run("task", "list", "--json", "--limit", "1").stdout)[0]
    assert task["prompt"] == "a blue sneaker"
    assert task["id"] in shell.run("task", "list").stdout
    assert json.loads(shell.run("task", "get", task["id"]).stdout) == task
    assert json.loads(shell.run("task", "watch", task["id"]).stdout)["status"] == "COMPLETED"
    assert "409" in shell.run("task", "cancel", task["id"], code=1).stderr
    assert "404" in shell.run("task", "get", "00000000-0000-4000-8000-000000000000", code=1).stderr


def test_pictures_are_made_at_once_fetched_again_and_made_anew(shell: Shell, tmp_path: Path) -> None:
    size = ("--width", "64", "--height", "64", "--seed", "3")
    said = shell.run("generate", "a red dress", *size, "--count", "3", "-o", str(tmp_path))
    assert [f"(seed {seed}, 64x64)" in said.stdout for seed in (3, 4, 5)] == [True] * 3
    assert len(list(tmp_path.glob("a-red-dress-[123].png"))) == 3
    tasks = json.loads(shell.run("task", "list", "--json", "--since", "1h", "--type", "generation").stdout)
    first = next(each for each in tasks if each["seed"] == 3 and each["width"] == 64)
    place = Path(shell.run("task", "download", first["id"], "-o", str(tmp_path / "again")).stdout.strip())
    assert place.read_bytes() == (tmp_path / "a-red-dress-1.png").read_bytes()

    retried = shell.run("retry", first["id"], "--watch")
    assert "Kept from" in retried.stderr
    anew = json.loads(shell.run("task", "get", retried.stdout.strip()).stdout)
    same = ("prompt", "seed", "width", "height", "status")
    assert [anew[name] for name in same] == [first[name] for name in same]
    assert anew["id"] != first["id"]


def test_pictures_of_a_workflow_are_saved_by_the_names_of_its_steps(shell: Shell, tmp_path: Path) -> None:
    file = Path(__file__).parents[2] / "examples" / "workflows" / "generate-and-frame.yaml"
    said = shell.run("workflow", "run", str(file), "-o", str(tmp_path / "made")).stdout.splitlines()
    assert said[1:] == [str(tmp_path / "made" / name) for name in ("generate.png", "frame.png")]
    with Image.open(said[1]) as picture:
        assert picture.size == (256, 256)


def test_pictures_of_a_folder_are_adjusted_and_a_workflow_takes_one_of_them(shell: Shell, tmp_path: Path) -> None:
    for name, colour in (("red", "#ff0000"), ("blue", "#0000ff")):
        Image.new("RGB", (300, 200), colour).save(tmp_path / f"{name}.png")
    size = ("--target-width", "64", "--target-height", "96")
    done = shell.run("adjust", str(tmp_path), *size, "-o", str(tmp_path / "out"))
    assert sorted(Path(line).name for line in done.stdout.splitlines()) == ["blue-adjust.png", "red-adjust.png"]
    with Image.open(tmp_path / "out" / "red-adjust.png") as made:
        assert made.size == (64, 96)
        assert made.convert("RGB").getpixel((32, 48)) == (255, 0, 0)
    (tmp_path / "flow.yaml").write_text(
        "name: n\nsteps:\n  - id: framed\n    task_type: IMAGE_ADJUSTER\n"
        '    config: {input_image: "@red.png", aspect_ratio: 1.0, mode: pad}\n'
    )
    blue = ("--set", f"framed.input_image=@{tmp_path / 'blue.png'}")
    shell.run("workflow", "run", str(tmp_path / "flow.yaml"), *blue, "-o", str(tmp_path / "framed"))
    with Image.open(tmp_path / "framed" / "framed.png") as made:
        assert made.size == (300, 300)
        assert made.convert("RGB").getpixel((150, 150)) == (0, 0, 255)
    refused = shell.run("adjust", str(tmp_path / "red.png"), code=1)
    assert refused.stderr.startswith("The mesh answered 422: aspect_ratio, a target size")


def test_logs_and_the_version_are_printed(shell: Shell) -> None:
    assert "tasks     | " in shell.run("logs", "-n", "1").stdout
    assert shell.run("logs", "gateway", "-n", "1").stdout.count("\n") == 1
    version = subprocess.run([*ATELIER, "--version"], capture_output=True, text=True, check=True, timeout=60)
    assert version.stdout.strip()[0].isdigit()


def test_doctor_finds_nothing_missing(shell: Shell) -> None:
    assert "Nothing is missing." in shell.run("doctor").stdout


def listed(shell: Shell) -> list[tuple[Any, ...]]:
    """The tasks, without the addresses of their files: these are signed anew every quarter of an hour."""
    tasks = json.loads(shell.run("task", "list", "--json").stdout)
    return [(task["id"], task["status"], task.get("result_image_path")) for task in tasks]


def test_two_meshes_run_side_by_side_and_a_restart_keeps_everything(shells: list[Shell]) -> None:
    one, two = shells
    two.up()
    two.healthy()
    assert {each["pid"] for each in one.status().values()}.isdisjoint(each["pid"] for each in two.status().values())
    headers = {"authorization": f"Bearer {one.token()}"}
    assert httpx.get(f"http://127.0.0.1:{two.port}/api/v1/tasks/", headers=headers, timeout=60).status_code == 401
    before = listed(one)
    one.run("down")
    assert json.loads(one.run("status", "--json", code=3).stdout) == {"processes": []}
    two.healthy()
    one.run("up", "--detach")  # on the port it had
    assert listed(one) == before
    two.run("down")


def test_commands_without_a_mesh_say_so(tmp_path: Path) -> None:
    nobody = Shell(tmp_path / "none")
    assert json.loads(nobody.run("status", "--json", code=3).stdout) == {"processes": []}
    assert "`atelier up`" in nobody.run("task", "list", code=3).stderr
    assert "`atelier up`" in nobody.run("generate", "x", code=3).stderr
    assert "No mesh runs" in nobody.run("down").stderr


def test_killed_supervisor_takes_its_processes_along_and_up_goes_on_with_everything(shell: Shell) -> None:
    before, tasks = shell.status(), listed(shell)
    path = tasks[0][2]
    headers = {"authorization": f"Bearer {shell.token()}"}
    supervisor = json.loads((shell.path / "mesh.json").read_text())["pid"]
    os.kill(supervisor, 9)
    until(
        lambda: not any(Path(f"/proc/{each['pid']}/exe").exists() for each in before.values()),
        "no process outlives the supervisor",
        60,
    )
    shell.run("up", "--detach")  # on the port it had
    shell.healthy()
    assert listed(shell) == tasks
    picture = httpx.get(
        f"http://127.0.0.1:{shell.port}/api/v1/storage/images/{path}",
        headers=headers,
        follow_redirects=True,
        timeout=60,
    )
    assert picture.status_code == 200
