"""Which objects of a backup belong to tasks."""

import pytest

from atelier_cli.backup import _OF_A_TASK

TASK = "0199aaaa-0000-7000-8000-000000000000"


@pytest.mark.parametrize("rest", ["1/image.png", "inputs/reference.png"])
def test_an_object_of_an_attempt_or_input_names_its_task(rest: str) -> None:
    found = _OF_A_TASK.match(f"tenants/acme/generations/{TASK}/{rest}")
    assert found is not None
    assert found.groups() == ("acme", f"generations/{TASK}/", TASK)


@pytest.mark.parametrize(
    "path", [f"tenants/acme/mine/{TASK}/1/image.png", f"tenants/acme/generations/{TASK}/notes.png"]
)
def test_an_image_that_a_tenant_stored_is_of_no_task(path: str) -> None:
    assert _OF_A_TASK.match(path) is None
