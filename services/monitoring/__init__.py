"""The monitoring service: what the mesh is doing as a whole, for operators.

Owns:
    Schema `monitoring` in PostgreSQL: `loops` (what operators want of background loops), `loop_events` (their history).
    Subjects `atelier.loops.wishes` and `atelier.loops.ask` on core NATS.
Serves:
    `atelier.monitoring.v1.SystemService` to operators; on a port of its own, where it has one, `externalscaler.
    ExternalScaler` to KEDA.
Calls:
    The tasks service (`TaskMonitoringService.GetQueueStats`, `GetWorkFigures`, `TasksService.ListProviders`,
    `ResetProviderBreaker`, and what it tells KEDA), and the health checks of tasks, workflows and training; where a
    mesh has them, those of evaluation and of capture, and `CameraService.GetCaptureState` of capture.
Consumes:
    `atelier.loops.report.<role>` on core NATS: what every process tells of its loops (`meshkit/supervision.py`).

Rooms:
    `supervision` has the background loops of all processes, `health` what works and what follows for the whole,
    `performance` the snapshots of the last hour: in each, `domain` is pure, `convert` is between domain and wire,
    and `service`, `probes` or `watch` has the use cases. `supervision.store` is what these need of a database, and
    `postgres` the only SQL. `prometheus` asks Prometheus, `task_calls` and `capture_calls` call services, `servicer`
    speaks gRPC, `errors` names what can go wrong, `composition` builds the service. `scaler` answers KEDA; `marker` and
    `capture` are processes of their own.
"""
