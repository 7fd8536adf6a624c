"""Several tasks are followed at once, and an interrupt says what becomes of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.progress import Progress, TextColumn

from atelier_cli.client import Gateway, TaskProgress
from atelier_cli.commands import generate as commands
from atelier_cli.commands.follow import TaskBar, cancelled_on_interrupt, command, follow_all, told_on_interrupt
from atelier_cli.errors import CliError
from atelier_cli.folder import DataFolder

Handler = Callable[[httpx.Request], httpx.Response]


def gateway(handler: Handler) -> Gateway:
    return Gateway("http://mesh", lambda: "t", transport=httpx.MockTransport(handler), patience_seconds=0.0)


def ended(request: httpx.Request) -> httpx.Response:
    """Answer a stream of events with the end of its task."""
    task_id = request.url.path.split("/")[-2]
    status = "FAILED" if task_id == "2" else "COMPLETED"
    task = {
        "id": task_id,
        "status": status,
        "seed": 7,
        "width": 8,
        "height": 8,
        "result_image_path": f"g/{task_id}.png",
        "errors": ["no memory"],
    }
    return httpx.Response(200, text=f"data: {json.dumps({'task': task, 'final': True})}\n\n")


@pytest.mark.parametrize("count", [3, 20])
def test_every_task_is_followed_to_its_end(count: int) -> None:
    seen: list[str] = []
    follow_all(lambda: gateway(ended), {str(n): "x" for n in range(count)}, lambda _, task: seen.append(task["id"]))
    assert sorted(seen, key=int) == [str(n) for n in range(count)]


def test_what_cannot_be_followed_ends_the_following() -> None:
    with pytest.raises(CliError, match="404"):
        follow_all(lambda: gateway(lambda _: httpx.Response(404, json={"detail": "x"})), {"1": "x"}, lambda *_: None)


def made(seeds: list[Any]) -> Handler:
    """Answer like a mesh that makes one task for each create."""

    def answer(request: httpx.Request) -> httpx.Response:
        if request.url.path.endswith("/events"):
            return ended(request)
        if request.method == "POST":
            seeds.append(json.loads(request.content).get("seed"))
            return httpx.Response(200, json={"id": str(len(seeds))})
        return httpx.Response(200, content=b"png")

    return answer


def test_pictures_of_a_count_are_saved_by_number_though_one_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seeds: list[Any] = []
    targets = commands._targets("a red dress", tmp_path, 3)
    assert [target.name for target in targets] == [f"a-red-dress-{n}.png" for n in (1, 2, 3)]
    bodies = [{"prompt": "a red dress", "seed": 5 + number} for number in range(3)]
    with pytest.raises(CliError, match=r"Task 2 failed: no memory\. 1 of 3 pictures failed\."):
        commands._make(lambda: gateway(made(seeds)), bodies, targets)
    assert seeds == [5, 6, 7]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-red-dress-1.png", "a-red-dress-3.png"]
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_an_output_without_a_suffix_is_a_folder_that_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "looks" / "spring"
    assert commands._targets("a red dress", folder, 1) == [folder / "a-red-dress.png"]
    assert folder.is_dir()
    assert commands._targets("a red dress", tmp_path / "a.png", 2) == [tmp_path / "a-1.png", tmp_path / "a-2.png"]
    (tmp_path / "file").touch()
    assert commands._targets("a red dress", tmp_path / "file", 1) == [tmp_path / "file"]


def test_a_create_that_is_refused_cancels_those_before_it(tmp_path: Path) -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        if request.url.path.endswith("/cancel"):
            return httpx.Response(200, json={})
        return (
            httpx.Response(200, json={"id": "1"}) if len(asked) == 1 else httpx.Response(429, json={"detail": "full"})
        )

    with pytest.raises(CliError, match="429: full"):
        commands._make(lambda: gateway(answer), [{"prompt": "x"}] * 2, [tmp_path / "1", tmp_path / "2"])
    assert asked[-1] == "/api/v1/tasks/1/cancel"


def test_an_interrupt_cancels_what_has_not_ended(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        over = request.url.path == "/api/v1/tasks/1/cancel"
        return httpx.Response(409, json={"detail": "over"}) if over else httpx.Response(200, json={})

    with pytest.raises(KeyboardInterrupt), cancelled_on_interrupt(gateway(answer), ["1", "2"]):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "Task 2 was cancelled. Make it again: atelier retry 2\n"


def test_an_interrupt_says_how_to_follow_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    again = command("task watch 1", "acme", DataFolder(tmp_path))
    with pytest.raises(KeyboardInterrupt), told_on_interrupt("Task 1", again):
        raise KeyboardInterrupt
    said = f"Task 1 goes on. Follow it again: atelier task watch 1 --tenant acme --data {tmp_path}"
    assert " ".join(capsys.readouterr().err.split()) == said
    assert command("task watch 1", "default", DataFolder.choose(None)) == "atelier task watch 1"


@pytest.mark.parametrize(
    ("event", "state", "completed"),
    [
        ({"phase": "QUEUED", "tasks_ahead": 3}, "queued, 3 ahead", 0),
        ({"phase": "QUEUED", "tasks_ahead": 100}, "queued, 100+ ahead", 0),
        ({"phase": "QUEUED", "tasks_ahead": 0}, "queued", 0),
        ({"phase": "LOADING_MODEL"}, "loading the model", 0),
        ({"phase": "RUNNING", "step": 2, "total_steps": 4}, "step 2 of 4", 45),
        ({"phase": "RUNNING", "step": 4, "total_steps": 4}, "step 4 of 4", 90),
        ({"phase": "UPSCALING", "step": 4, "total_steps": 4}, "upscaling", 92),
        ({"phase": "STORING"}, "storing", 97),
    ],
)
def test_a_bar_names_what_its_task_is_at_and_leaves_room_for_what_follows_the_steps(
    event: dict[str, Any], state: str, completed: float
) -> None:
    bars = Progress(TextColumn("{task.fields[state]}"), disable=True)
    bar = TaskBar(bars, "a red dress")
    task = {"status": "PENDING" if event["phase"] == "QUEUED" else "EXECUTING", "progress": 0}
    bar.show(TaskProgress(task, event.get("step"), event.get("total_steps"), event["phase"], event.get("tasks_ahead")))
    assert (bars.tasks[0].fields["state"], bars.tasks[0].completed) == (state, completed)
    bar.show(TaskProgress({"status": "COMPLETED", "progress": 100}, None, None))
    assert (bars.tasks[0].fields["state"], bars.tasks[0].completed) == ("completed", 100)
