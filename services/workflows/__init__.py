"""The workflows service: graphs of tasks that survive any process and resume where they stopped.

Owns:
    Schema `workflows` in PostgreSQL: `workflows`, `steps`, `file_sweeps`, `outbox`, `leaders`,
    `idempotency_keys`, and the counters `workflow_counts`, `workflow_creations` and `workflow_changes`.
    Objects below `workflows/`: files that came inside of definitions.
    Subjects `atelier.workflows.v1.workflow.{pending,running,paused,completed,failed,cancelled}` on JetStream.
Serves:
    `atelier.workflows.v1.WorkflowsService` and `atelier.workflows.v1.WorkflowMonitoringService`.
Calls:
    The tasks service: `GetCatalog`, `CreateTask`, `GetTask`, `CancelTask`, `CleanupTask`, `WebhookService.Enqueue`,
    `JobsService.ForgetJobs`, `JobsService.HoldTasks`, `RetentionService.ListRetention`.
    The training service, for steps that train: `CreateTraining`, `GetTraining`, `CancelTraining`.
Consumes:
    `atelier.tasks.v1.step.{completed,failed,cancelled}` on JetStream and `atelier.ended.step` on core NATS, the ends of
    tasks that are steps of a workflow, and `atelier.training.v1.training.{completed,failed,cancelled}`.

Rooms:
    Pure: `domain`, `graph`, `mapping`, `fields`, `items`, `condition`, `definition`, `iteration`, `building`,
    `signals`, and `engine`, which decides what a signal does to a workflow.
    `store` is what the use cases need of a database, and `postgres` the only SQL. `service` holds the use cases,
    `files` takes over what comes inside of definitions, `executor` carries decisions out, `task_events` and
    `training_events` consume the ends of tasks and trainings, `task_calls` and `training_calls` call their services.
    `convert`, `events` and `errors` are between domain and wire, `servicer` speaks gRPC, `loops` is the background
    work, and `retention` deletes what is old. `composition` builds the service.
"""
