from dataclasses import replace
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from services.tasks import events
from services.tasks.domain import Status, new_task

NOW = datetime(2026, 11, 22, tzinfo=UTC)


@pytest.mark.parametrize(("workflow", "entity"), [(None, "task"), (uuid4(), "step")])
def test_a_step_of_a_workflow_speaks_on_subjects_of_its_own(workflow: UUID | None, entity: str) -> None:
    record = new_task(
        task_id=uuid4(),
        tenant="acme",
        task_type="NOOP",
        priority=0,
        queue_name="inference",
        provider_type="LOCAL",
        now=NOW,
        origin_instance="tests",
        origin_zone=None,
        origin_reference=None,
        workflow_id=workflow,
        webhook_url=None,
        timeout_seconds=60.0,
        warm_keys=(),
        traceparent="",
        spec=b"",
        body=b"",
    )
    done = replace(record, status=Status.COMPLETED.value, completed_at=NOW)
    assert events.created(record).subject == f"atelier.tasks.v1.{entity}.created"
    assert events.changed(done).subject == f"atelier.tasks.v1.{entity}.completed"
