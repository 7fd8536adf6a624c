"""The monitoring service: what the mesh is doing as a whole, for operators.

Owns:
    Schema `monitoring` in PostgreSQL: `loops` (what operators want of background loops), `loop_events` (their history).
    Subjects `atelier.loops.wishes` and `atelier.loops.ask` on core NATS.
Serves:
    `atelier.monitoring.v1.SystemService` to operators; on a port of its own, where it has one, `externalscaler.
    ExternalScaler` to KEDA.
Calls:
    The tasks service (`TaskMonitoringService.GetQueueStats`, `GetWorkFigures`, `TasksService.ListProviders`,
    `ResetProviderBreaker`, and what it tells KEDA), and the health checks of tasks, workflows and training.
Consumes:
    `atelier.loops.report.<role>` on core NATS: what every process tells of its loops (`meshkit/supervision.py`).

Rooms:
    Pure: `domain` (loops), `parts` (what works, and what follows for the whole) and `performance` (snapshots, alerts).
    `store` is what the use cases need of a database, and `postgres` the only SQL. `supervisor` holds the use cases of
    loops, `probes` asks every part, `degradation` does so for ever, `performance_watch` takes snapshots, `prometheus`
    asks Prometheus. `task_calls` calls the tasks service. `convert`, `health_convert`, `performance_convert` and
    `errors` are between domain and wire, `servicer` speaks gRPC. `composition` builds the service. `scaler` answers
    KEDA, and `marker` is a process of its own that marks pods for Kubernetes.
"""
