"""What the surface says of tasks, workflows and trainings, as jobs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

PENDING, RUNNING, COMPLETED, FAILED = "pending", "running", "completed", "failed"
STATUSES = (PENDING, RUNNING, COMPLETED, FAILED)
CANCELLED = "cancelled"
UNTOLD = "failed"
"""The error of a job that failed where nobody has said why."""
WORKFLOW, TRAINING = "WORKFLOW", "TRAINING"

# Of tasks, workflows and trainings alike.
_STATUS_OF = {
    "PENDING": PENDING,
    "EXECUTING": RUNNING,
    "RUNNING": RUNNING,
    "PAUSED": RUNNING,
    "PREPROCESSING": RUNNING,
    "TRAINING": RUNNING,
    "COMPLETED": COMPLETED,
    "FAILED": FAILED,
    "CANCELLED": FAILED,
}

Row = Mapping[str, Any]
Job = dict[str, Any]


def status_of(state: str) -> str:
    """Return the status of a job by the state of what it is."""
    return _STATUS_OF[state]


def states_of(status: str, states: Sequence[str]) -> list[str]:
    """Return which states a status stands for."""
    return [one for one in states if _STATUS_OF[one] == status]


def of_task(row: Row) -> Job:
    """Return a task as a job, by what monitoring says of it."""
    errors = row.get("errors") or []
    job = _job(row, row["task_type"], errors[-1] if errors else None)
    data = row.get("task_data") or {}
    result = {name: value for name, value in data.items() if name.startswith("result_") and value is not None}
    job["result"] = result or None if job["status"] == COMPLETED else None
    return job


def of_workflow(row: Row) -> Job:
    """Return a workflow as a job."""
    job = _job(row, WORKFLOW, row.get("error_message"))
    job["message"] = f"{row['name']}: {row['completed_steps']} of {row['total_steps']} steps"
    if row["status"] == "PAUSED":
        job["message"] += ", paused"
    return job


def of_training(row: Row) -> Job:
    """Return a training as a job."""
    job = _job(row, TRAINING, row.get("error_message"))
    if row["status"] in {"PREPROCESSING", "TRAINING"}:
        job["message"] = row["status"].lower()
    path = row.get("local_model_path")
    job["result"] = {"local_model_path": path} if path and job["status"] == COMPLETED else None
    return job


def _job(row: Row, job_type: str, error: str | None) -> Job:
    status = _STATUS_OF[row["status"]]
    failed = CANCELLED if row["status"] == "CANCELLED" else error or UNTOLD
    return {
        "job_id": row["id"],
        "job_type": job_type,
        "status": status,
        "progress": row.get("progress") or 0.0,
        "message": None,
        "created_at": row["created_at"],
        "started_at": row.get("started_at"),
        "completed_at": row.get("completed_at"),
        "result": None,
        "error": failed if status == FAILED else None,
    }


def history_of(job: Job, attempts: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what happened to a job, the oldest first."""
    happened = [_event(job["created_at"], PENDING, "accepted")]
    if attempts:
        for one in attempts:
            number = one["attempt"]
            happened.append(_event(one["started_at"], RUNNING, f"attempt {number} began on {one['executor_instance']}"))
            if one["ended_at"]:
                why = f": {one['error']}" if one["error"] else ""
                happened.append(_event(one["ended_at"], _ended(one), f"attempt {number} {one['outcome'].lower()}{why}"))
    elif job["started_at"]:
        happened.append(_event(job["started_at"], RUNNING, "began"))
    if job["completed_at"]:
        happened.append(_event(job["completed_at"], job["status"], job["error"] or job["status"]))
    return sorted(happened, key=lambda one: str(one["timestamp"]))


def _ended(attempt: Row) -> str:
    return COMPLETED if attempt["outcome"] == "COMPLETED" else FAILED


def _event(timestamp: str, status: str, message: str) -> dict[str, Any]:
    return {"timestamp": timestamp, "status": status, "message": message}


def log_of(history: Sequence[Row]) -> list[dict[str, Any]]:
    """Return what happened to a job as lines of a log."""
    return [
        {
            "timestamp": one["timestamp"],
            "level": "ERROR" if one["status"] == FAILED else "INFO",
            "message": one["message"],
        }
        for one in history
    ]
