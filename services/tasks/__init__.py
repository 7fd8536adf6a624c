"""The tasks service: accepts tasks, schedules them, leases them to workers and records their attempts.

Owns:
    Schema `tasks` in PostgreSQL: `tasks`, `attempts`, `service_requests`, `sessions`, `queues`, `queue_tenants`,
    `queue_lanes`, `provider_gates`, `provider_tenants`, `provider_usage`, `task_ids`, `object_sweeps`,
    `webhook_deliveries`, `webhook_attempts`, `webhook_secrets`, `webhook_disabled`, `task_counts`, `task_creations`,
    `queue_flow`, `usage_days` and the notes of changes to these (`task_changes`, `usage_changes`), `stored_days`,
    `stored_measures`, `work_times`, `retention_rules`, `task_holds`, `outbox`, `leaders`, `idempotency_keys`.
    Subjects `atelier.tasks.v1.{task,step}.{created,started,completed,failed,cancelled,requeued}` and
    `atelier.tasks.v1.job.{ended,requeued}` on JetStream, and on core NATS `atelier.progress.<task_id>`,
    `atelier.wake.<queue>`, `atelier.cancel.<session_id>`, `atelier.ended.step`.
    Objects below `generations/`, `editings/`, `refines/` and the other types' prefixes.
Serves:
    `atelier.tasks.v1.TasksService` to callers, `atelier.tasks.v1.WorkerService` to workers,
    `atelier.tasks.v1.JobsService` to services that have jobs on the scheduler, `atelier.tasks.v1.WebhookService` to
    callers and to services that hand in events, `atelier.tasks.v1.TaskMonitoringService` to operators,
    `atelier.tasks.v1.ScalingService` to operators and to whoever scales workers, `atelier.tasks.v1.RetentionService` to
    operators and to services that delete what is old, and `atelier.tasks.v1.UsageService` to callers.
Calls:
    No other service; receivers of webhooks.

Rooms:
    `api` serves callers, `scheduling` workers, `jobs` other services, `webhooks` receivers, `monitoring` operators,
    `usage` those who ask what was used, `scaling` those who add and remove workers, `retention` those who say how long
    what has ended is kept, each with its own `service` and `servicer`.
    `providers` is what stands before calls to providers: breakers, calls at once, rates.
    `inputs` checks what callers send along.
    `domain` is pure: states, transitions, what follows a lost attempt. So are `identifiers`, `owners`, whose a job is,
    `devices`, what workers compute on, `service_requests`, what workers ask of providers, and `fallbacks`, what becomes
    of a task whose second provider takes over. `catalog` is what this installation serves of the types and providers
    that `enums.proto` declares.
    `store` is what the use cases need of a database, and `postgres` the only SQL. `convert`, `events`, `media` and
    `errors` are between domain and wire. `notifier` tells other processes by core NATS. `loops` is the background work,
    `metrics` what the service counts. `composition` builds the service.
"""
