"""The examples that ship hold as they stand."""

from pathlib import Path

import pytest
import yaml  # type: ignore[import-untyped]  # ships no types
from atelier.workflows.v1 import workflow_pb2
from google.protobuf import json_format

from atelier_cli.taskforms import file_members
from meshkit.catalog import PROVIDERS, TASK_TYPES
from services.workflows.definition import ServedCatalog, check

# Whatever an installation serves by default: the examples show all types.
SERVED = ServedCatalog.of(list(TASK_TYPES), {"LOCAL": sorted(PROVIDERS["LOCAL"].capabilities())}, ["inference"])
EXAMPLES = sorted((Path(__file__).parents[3] / "examples" / "workflows").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) == 7


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_an_example_holds(file: Path) -> None:
    message = {"origin_instance": "tests", **yaml.safe_load(file.read_text())}
    for step in message["steps"]:
        step["task_type"] = f"TASK_TYPE_{step['task_type']}"  # as Protobuf's own JSON has it
    check(json_format.ParseDict(message, workflow_pb2.CreateWorkflow()), SERVED)
    for described in message["steps"]:
        members = file_members(described["task_type"].removeprefix("TASK_TYPE_"))
        for name, value in described.get("config", {}).items():
            assert not str(value).startswith("@") or name in members, f"{name} takes no file"
