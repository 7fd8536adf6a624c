"""Capture: photos that land in watched folders are seen, grouped, judged and told of.

A process of its own, for meshes that are given a root of such folders: one folder below it is one camera. All that it
knows belongs to one tenant.

Owns:
    Schema `capture` in PostgreSQL: `cameras`, `photos` (one content of one file each), `detections` (what was found on
    them), `batches` (photos of a camera that came one soon after the other), `events` (a batch, judged),
    `alerts`, `webhook_handovers`, `photo_runs` (the workflow of a photo), and the outbox.
    Subjects `atelier.capture.v1.<type>`, one for each type of live message that it sends: `atelier.capture.v1.
    detection.new`. The payload is that message of `atelier.events.v1`.
Serves:
    `atelier.monitoring.v1.CameraService`, `PhotoService`, `EventService` and `AlertService`, to callers of the tenant,
    below `/api/capture/`; `CameraService.GetCaptureState` to the monitoring service.
Calls:
    The tasks and workflows services.

Data goes one way: file, photo, detections, batch, event, alerts. Each step is a loop that reads rows of the step before
and writes its own, so any of them may be away or be repeated.

Rooms:
    `watching` sees files and reads them, `cameras` has what is known of each folder, `photos` has the rows of photos
    and detections, `detection` has tasks look at them, `runs` runs a workflow for each, `batches` gathers photos,
    `analysis` judges batches, `alerts` tells whom events concern, `cleanup` forgets. In each, `domain` is pure, `store`
    is what the room needs of a database, `service` has the use cases, `servicer` speaks gRPC, `convert` is between
    domain and wire. `postgres` has the only SQL; its `changes` is how every room changes rows and tells listeners of it
    in one transaction. `access` says who may see it all, `pages` has what lists of all rooms share, `outages` what
    loops do while a service is away.
"""
