"""The workflows service: graphs of tasks that survive any process and resume where they stopped.

Owns:
    Schema `workflows` in PostgreSQL: `workflows`, `steps`, `outbox`, `idempotency_keys`.
    Subjects `atelier.workflows.v1.workflow.{pending,running,paused,completed,failed,cancelled}` on JetStream.
Serves:
    `atelier.workflows.v1.WorkflowsService` and `atelier.workflows.v1.WorkflowMonitoringService`.
Calls:
    The tasks service: `GetCatalog`, `CreateTask`, `GetTask`, `CancelTask`, `CleanupTask`, `WebhookService.Enqueue`.
Hears:
    `atelier.tasks.v1.step.{completed,failed,cancelled}` on JetStream and `atelier.ended.step` on core NATS, the ends of
    tasks that are steps of a workflow.

Rooms: `domain`, `graph`, `mapping`, `fields`, `items`, `condition`, `definition`, `iteration`, `building`, `signals`
and `engine` are pure: `engine` decides what a signal does to a workflow. `store` is what the use cases need of a
database and `postgres` the only SQL; `service` is the use cases, `execution` carries decisions out, `hearing` hears
how tasks ended; `tasks` speaks to the tasks service; `loops` is what runs by itself; `servicer` speaks gRPC;
`composition` and `__main__` wire.
"""
