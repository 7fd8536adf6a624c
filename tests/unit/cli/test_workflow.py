from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format
from rich.console import Console

from atelier_cli.client import Gateway
from atelier_cli.commands.workflow import graph, read, require_completed, shares, tree
from atelier_cli.errors import CliError
from meshkit.catalog import TASK_TYPES
from services.workflows.definition import ServedCatalog, check

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "workflows").glob("*.yaml"))
SERVED = ServedCatalog.of(list(TASK_TYPES), {"LOCAL": []}, ["inference"])


def step(name: str, status: str, *needs: str, **more: Any) -> dict[str, Any]:
    return {
        "step_id": name,
        "status": status,
        "dependencies": list(needs),
        "retry_count": 0,
        "error_message": None,
        **more,
    }


def drawn(*steps: dict[str, Any]) -> str:
    console = Console(width=100, record=True, file=None)
    with console.capture() as capture:
        console.print(tree({"name": "look [x]", "status": "RUNNING", "progress": 50.0, "steps": list(steps)}))
    return capture.get()


def test_a_step_with_items_shows_how_many_are_done() -> None:
    items = [{"status": "COMPLETED"}, {"status": "RUNNING"}, {"status": "PENDING"}]
    text = drawn(step("all", "RUNNING", items=items), step("end", "PENDING", "all", items=None))
    assert "all running 1/3" in text
    assert "end pending\n" in "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def test_a_step_hangs_below_what_it_depends_on() -> None:
    text = drawn(
        step("d", "PENDING", "b", "c"),
        step("a", "COMPLETED"),
        step("b", "RUNNING", "a", retry_count=2),
        step("c", "FAILED", "a", error_message="broken"),
    )
    lines = text.splitlines()
    assert lines[0].startswith("look [x] running 50 %")
    assert [line.strip(" │├└─").split()[0] for line in lines[1:]] == ["a", "b", "c", "d"]
    assert "b running (retry 2)" in text
    assert "c failed broken" in text
    assert "d pending after b, c" in text


def gateway(answer: Callable[[httpx.Request], httpx.Response]) -> Gateway:
    return Gateway("http://gateway", lambda: "token", transport=httpx.MockTransport(answer), patience_seconds=0)


def test_the_progress_of_running_steps_is_asked_for_where_their_task_exists() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.path)
        made = request.url.path.endswith("/1")
        return httpx.Response(200, json={"progress": 40.0}) if made else httpx.Response(404, json={"detail": "none"})

    steps = [
        step("a", "COMPLETED", task_id="0"),
        step("b", "RUNNING", task_id="1"),
        step("c", "RUNNING", task_id="2"),
        step("d", "RUNNING", task_id=None),
    ]
    assert shares(gateway(answer), {"steps": steps}) == {"b": 40.0}
    assert asked == ["/api/v1/tasks/1", "/api/v1/tasks/2"]


def test_running_steps_show_their_progress_and_a_paused_workflow_how_it_goes_on() -> None:
    workflow = {"id": "7", "name": "look", "status": "PAUSED", "progress": 0.0, "steps": [step("b", "RUNNING")]}
    console = Console(width=100)
    with console.capture() as capture:
        console.print(tree(workflow, {"b": 40.0}))
    assert capture.get().splitlines() == [
        "look paused 0 %, go on by: atelier workflow resume 7",
        "└── b running 40 %",
    ]


def test_a_mesh_that_cannot_be_reached_ends_the_watching() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused", request=request)

    with pytest.raises(CliError, match="cannot be reached"):
        shares(gateway(answer), {"steps": [step("b", "RUNNING", task_id="1")]})


@pytest.mark.parametrize("name", ["w.gif", "w"])
def test_a_picture_is_svg_or_png(tmp_path: Path, name: str) -> None:
    with pytest.raises(CliError, match=r"neither in \.svg nor in \.png"):
        graph(str(EXAMPLES[0]), output=tmp_path / name)


@pytest.mark.parametrize("name", ["w.svg", "w.PNG"])
def test_a_file_is_drawn_without_a_mesh(tmp_path: Path, name: str) -> None:
    graph(str(EXAMPLES[0]), output=tmp_path / name)
    assert (tmp_path / name).read_bytes()[:4] in {b"<svg", b"\x89PNG"}


@pytest.mark.parametrize("text", ["- a list", "{", "\0"])
def test_a_file_that_holds_no_workflow_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "w.yaml"
    file.write_text(text)
    with pytest.raises(CliError):
        read(file)


def test_a_failure_is_told_with_its_reason() -> None:
    with pytest.raises(CliError, match="failed: a: broken"):
        require_completed({"id": "1", "status": "FAILED", "error_message": "a: broken"})


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_is_a_definition_that_is_accepted(file: Path) -> None:
    definition = read(file)
    for one in definition["steps"]:
        one["task_type"] = f"TASK_TYPE_{one['task_type']}"
    check(json_format.ParseDict(definition, workflow_pb2.CreateWorkflow()), SERVED)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 3
