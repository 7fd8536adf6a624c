"""The training service: from images to an adapter that the next picture can use, and the library of adapters.

Owns:
    Schema `training` in PostgreSQL: `trainings`, `datasets`, `losses`, `validation_losses`, `saves`, `samples`,
    `loras`, `object_sweeps`, `webhook_handovers`, `outbox`, `leaders`, `idempotency_keys`.
    Objects below `trainings/`; the library's are told in its charter.
    Subjects `atelier.training.v1.training.{pending,preprocessing,training,completed,failed,cancelled}` and
    `atelier.training.v1.preprocessing.{running,completed,ended}` on JetStream, and on core NATS
    `atelier.changed.training.<id>` and `atelier.progress.<id>`.
Serves:
    `atelier.training.v1.TrainingService` and `atelier.training.v1.LoraService` to callers,
    `atelier.training.v1.TrainerService` to trainers.
Calls:
    The tasks service, which owns the lifecycle of a training's job: `JobsService`, `WebhookService.Enqueue`,
    `RetentionService.ListRetention`.
Consumes:
    `atelier.tasks.v1.job.{ended,requeued}` on JetStream.

Rooms:
    Pure: `domain`, `rules` (what a request must fulfil) and `curve` (losses as a picture).
    `store` is what the use cases need of a database, and `postgres` the only SQL. `service` holds the use cases of
    callers, `reports` those of trainers, `ends` what follows the end of a job, `watch` follows trainings. `inputs`
    takes images over, `adapters` is what trainings need of the library, `job_calls` calls the tasks service, `notices`
    tells other processes by core NATS. `convert`, `events` and `errors` are between domain and wire, `servicer` speaks
    gRPC, `loops` is the background work, `retention` deletes what is old. `composition` builds the service.
    `library` is the LoRA library, `trainer` the worker, a process of its own.
"""
