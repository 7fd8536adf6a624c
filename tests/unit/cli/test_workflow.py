from pathlib import Path
from typing import Any

import pytest
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format
from rich.console import Console

from atelier_cli.commands.workflow import read, require_completed, tree
from atelier_cli.errors import CliError
from services.workflows.definition import Served, check

EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "workflows").glob("*.yaml"))
SERVED = Served.of(["GENERATION", "IMAGE_ADJUSTER"], {"LOCAL": []}, ["inference"])


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
