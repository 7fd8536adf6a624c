"""The tasks service: accepts tasks, schedules them, leases them to workers and keeps their story.

Owns:
    Schema `tasks` in PostgreSQL: `tasks`, `attempts`, `sessions`, `queues`, `queue_tenants`, `queue_lanes`, `task_ids`,
    `object_sweeps`, `webhook_deliveries`, `webhook_attempts`, `webhook_secrets`, `webhook_disabled`, `outbox`,
    `idempotency_keys`.
    Subjects `atelier.tasks.v1.{task,step}.{created,started,completed,failed,cancelled,requeued}` on JetStream, and on
    core NATS `atelier.progress.<task_id>`, `atelier.wake.<queue>`, `atelier.cancel.<session_id>`, `atelier.ended.step`.
    Objects below `generations/`, `editings/`, `refines/` and the other types' prefixes.
Serves:
    `atelier.tasks.v1.TasksService` to callers, `atelier.tasks.v1.WorkerService` to workers, and
    `atelier.tasks.v1.WebhookService` to callers and to services that have events to tell.
Calls:
    No other service; receivers of webhooks.

Rooms: `domain` and `fairness` are pure; `store` is what the use cases need of a database and `postgres` the only SQL;
`service` and `workers` are the use cases, `scheduler` gives work to polls; `servicer` and `worker_servicer` speak gRPC;
`inputs` lets untrusted inputs in; `watch` follows one task; `loops` is what runs by itself; `webhooks` (pure),
`sending` and `webhook_service` tell receivers; `__main__` wires.
"""
