"""What the OpenAPI document says of `/api/jobs`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from meshkit.transcoding.openapi import SECURITY, errors
from meshkit.transcoding.schemas import Schema, reference
from services.gateway.jobs.pages import JOBS, MOST, MOST_OFFSET
from services.gateway.jobs.reading import STATUSES


def _object(name: str, description: str, properties: Mapping[str, Schema]) -> Schema:
    return {
        "properties": {member: {"title": _title(member), **schema} for member, schema in properties.items()},
        "type": "object",
        "required": list(properties),
        "title": name,
        "description": description,
    }


def _title(member: str) -> str:
    return member.replace("_", " ").title()


def _text(description: str, **more: object) -> Schema:
    return {"type": "string", "description": description, **more}


def _maybe(schema: Schema, description: str) -> Schema:
    return {"anyOf": [schema, {"type": "null"}], "description": description}


def _whole(description: str) -> Schema:
    return {"type": "integer", "minimum": 0, "description": description}


def _list(of: Schema, description: str) -> Schema:
    return {"items": of, "type": "array", "description": description}


_MOMENT: Schema = {"type": "string", "format": "date-time"}
_ANY: Schema = {"additionalProperties": True, "type": "object"}
_COUNTS: Schema = {"additionalProperties": {"type": "integer"}, "type": "object"}
_ID = _text("The task, workflow or training.", format="uuid")
_TYPE = _text("Type of the task, `WORKFLOW` or `TRAINING`.")
_STATUS = _text("Where it stands; a cancelled one has failed.", enum=list(STATUSES))
_JOB: Mapping[str, Schema] = {
    "job_id": _ID,
    "job_type": _TYPE,
    "status": _STATUS,
    "progress": {"type": "number", "minimum": 0, "maximum": 100, "description": "Percent done."},
    "message": _maybe({"type": "string"}, "What it is at."),
    "created_at": _text("When it was accepted.", format="date-time"),
    "started_at": _maybe(_MOMENT, "When it began."),
    "completed_at": _maybe(_MOMENT, "When it ended."),
    "result": _maybe(_ANY, "What it left."),
    "error": _maybe({"type": "string"}, "Why it failed; `cancelled` for one that was cancelled."),
}

SCHEMAS: Mapping[str, Schema] = {
    "Job": _object("Job", "A task, workflow or training.", _JOB),
    "JobDetail": _object(
        "JobDetail",
        "A job, and what its owner says of it.",
        {
            **_JOB,
            "kind": _text("What it is.", enum=["task", "workflow", "training"]),
            "detail": {**_ANY, "description": "The task, workflow or training, as its own endpoint shows it."},
        },
    ),
    "JobPagination": _object(
        "JobPagination",
        "Which part of a list this is.",
        {
            "total": _whole("Jobs in all."),
            "limit": _whole("Jobs asked for."),
            "offset": _whole("Jobs passed over."),
            "items_count": _whole("Jobs here."),
            "has_more": {"type": "boolean", "description": "Whether more follow."},
        },
    ),
    "JobListResponse": _object(
        "JobListResponse",
        "Jobs, the newest first.",
        {"items": _list(reference("Job"), "The jobs."), "pagination": reference("JobPagination")},
    ),
    "JobTypesResponse": _object(
        "JobTypesResponse", "The types of jobs.", {"job_types": _list({"type": "string"}, "The types.")}
    ),
    "JobStatsResponse": _object(
        "JobStatsResponse",
        "How many jobs there are.",
        {
            "total": _whole("In all."),
            "by_status": {**_COUNTS, "description": "By status."},
            "by_type": {**_COUNTS, "description": "By type."},
        },
    ),
    "JobHistoryItem": _object(
        "JobHistoryItem",
        "Something that happened to a job.",
        {"timestamp": _text("When.", format="date-time"), "status": _STATUS, "message": _text("What.")},
    ),
    "JobHistoryResponse": _object(
        "JobHistoryResponse",
        "What happened to a job.",
        {
            "job_id": _ID,
            "job_type": _TYPE,
            "history": _list(reference("JobHistoryItem"), "What happened, the oldest first."),
        },
    ),
    "JobLogLine": _object(
        "JobLogLine",
        "A line of a job's log.",
        {
            "timestamp": _text("When.", format="date-time"),
            "level": _text("How grave it is.", enum=["INFO", "ERROR"]),
            "message": _text("What happened."),
        },
    ),
    "JobLogsResponse": _object(
        "JobLogsResponse",
        "The log of a job.",
        {"job_id": _ID, "logs": _list(reference("JobLogLine"), "The lines."), "total": _whole("How many there are.")},
    ),
    "BulkCancelRequest": _object(
        "BulkCancelRequest",
        "Jobs to cancel.",
        {
            "job_ids": {
                "items": {"type": "string", "format": "uuid"},
                "type": "array",
                "minItems": 1,
                "maxItems": MOST,
                "description": "The jobs.",
            }
        },
    ),
    "BulkCancelFailure": _object(
        "BulkCancelFailure",
        "A job that was not cancelled.",
        {"job_id": _ID, "status": _whole("HTTP status of the refusal."), "error": _text("Why.")},
    ),
    "BulkCancelResponse": _object(
        "BulkCancelResponse",
        "What became of each job.",
        {
            "cancelled": _list({"type": "string", "format": "uuid"}, "Jobs that were cancelled."),
            "failed": _list(reference("BulkCancelFailure"), "Jobs that were not."),
        },
    ),
    "DeletedJob": _object(
        "DeletedJob",
        "A job that is gone.",
        {"deleted": {"type": "boolean", "const": True, "description": "Always true."}, "job_id": _ID},
    ),
}


def _query(name: str, schema: Schema, description: str, *, required: bool = False) -> Schema:
    return {
        "name": name,
        "in": "query",
        "required": required,
        "description": description,
        "schema": {"title": _title(name), **schema},
    }


_ONE: Sequence[Schema] = (
    {
        "name": "job_id",
        "in": "path",
        "required": True,
        "description": "The job.",
        "schema": {"type": "string", "format": "uuid", "title": "Job Id"},
    },
)
_FILTERS: Sequence[Schema] = (
    _query("job_type", {"type": "string"}, "Only jobs of this type."),
    _query("status", {"type": "string", "enum": list(STATUSES)}, "Only jobs of this status."),
    _query("limit", {"type": "integer", "default": 50, "minimum": 1, "maximum": MOST}, "Jobs to return at most."),
    _query("offset", {"type": "integer", "default": 0, "minimum": 0, "maximum": MOST_OFFSET}, "Jobs to pass over."),
)


def _route(
    name: str,
    description: str,
    schema: str,
    *codes: int,
    parameters: Sequence[Schema] = (),
    scope: str = "read",
    **more: object,
) -> Schema:
    return {
        "tags": ["jobs"],
        "summary": _title(name),
        "description": f"{description}\n\nNeeds the scope `{scope}`.",
        "operationId": name,
        "security": SECURITY,
        **({"parameters": list(parameters)} if parameters else {}),
        **more,
        "responses": {
            "200": {
                "description": "Successful Response",
                "content": {"application/json": {"schema": reference(schema)}},
            },
            **errors(401, 403, *codes),
        },
    }


def _on_one(name: str, description: str, schema: str, *codes: int, scope: str = "read") -> Schema:
    return _route(name, description, schema, 404, *codes, 422, parameters=_ONE, scope=scope)


_BULK: Schema = {
    "required": True,
    "content": {"application/json": {"schema": reference("BulkCancelRequest")}},
}

PATHS: Mapping[str, Mapping[str, Schema]] = {
    JOBS: {
        "get": _route(
            "list_jobs",
            "Lists tasks, workflows and trainings as jobs, the newest first.",
            "JobListResponse",
            422,
            parameters=_FILTERS,
        )
    },
    f"{JOBS}/types": {"get": _route("list_job_types", "Lists the types of jobs.", "JobTypesResponse")},
    f"{JOBS}/stats": {"get": _route("get_job_stats", "Counts jobs by status and type.", "JobStatsResponse")},
    f"{JOBS}/search": {
        "get": _route(
            "search_jobs",
            "Finds jobs by the beginning of their id, and workflows by their name.",
            "JobListResponse",
            422,
            parameters=(
                _query(
                    "q",
                    {"type": "string", "minLength": 1, "maxLength": 255},
                    "Beginning of an id, or a workflow's name.",
                    required=True,
                ),
                *_FILTERS,
            ),
        )
    },
    f"{JOBS}/bulk-cancel": {
        "post": _route(
            "bulk_cancel_jobs",
            "Cancels several jobs; each is told of by itself.",
            "BulkCancelResponse",
            422,
            scope="write",
            requestBody=_BULK,
        )
    },
    f"{JOBS}/{{job_id}}": {
        "get": _on_one("get_job", "Returns a job.", "Job"),
        "delete": _on_one(
            "delete_job",
            "Deletes a task or training with its files, or the files of a workflow, which is then hidden. A job that "
            "runs, and a training that another goes on from or whose webhook is still to be delivered, stay: 409.",
            "DeletedJob",
            409,
            scope="write",
        ),
    },
    f"{JOBS}/{{job_id}}/detail": {
        "get": _on_one("get_job_detail", "Returns a job with what its owner says of it.", "JobDetail")
    },
    f"{JOBS}/{{job_id}}/history": {
        "get": _on_one("get_job_history", "Tells what happened to a job.", "JobHistoryResponse")
    },
    f"{JOBS}/{{job_id}}/logs": {
        "get": _on_one(
            "get_job_logs",
            "Tells the same as lines of a log; `/ws/jobs/{job_id}/logs` sends them as they come.",
            "JobLogsResponse",
        )
    },
    f"{JOBS}/{{job_id}}/cancel": {
        "post": _on_one("cancel_job", "Cancels a job that has not ended.", "Job", 409, scope="write")
    },
    f"{JOBS}/{{job_id}}/abort": {"post": _on_one("abort_job", "Cancels a job that runs.", "Job", 409, scope="write")},
}
