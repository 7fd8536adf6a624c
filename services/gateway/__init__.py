"""The gateway: HTTP/JSON, SSE, WebSocket and uploads in front of the mesh.

It owns the public surface: routes, JSON, the OpenAPI document, the first check of tokens, stored images, signed URLs
and live events. It calls whatever services the contracts bind to HTTP, owns no table and no subject, and knows no
business rule: what a request means is decided by the service that answers it. It reads the stream of events for those
who listen, and tells the monitoring service of its loop.

Rooms:
    A request passes `server`, `connections` and `http_protocol` (HTTP and its bounds; `refusals` logs what ends there),
    `app` (routes), `middleware` (identity, access log, limits), `auth`, `bodies` (memory) and `staging` (its files).
    `endpoints` forwards it as an RPC, `streams` answers with events; `live` serves those who listen to everything,
    `jobs` shows tasks, workflows and trainings as one kind.
    `stored_images`, `thumbnails`, `conditions` and `ranges` serve stored images, `lora_uploads` takes LoRA files;
    `docs`, `openapi` and `lora_openapi` are the API's page and its document, `health` says whether the gateway serves.
    `contracts` finds the services in the descriptors, `asgi` holds small tools, `composition` builds the service.
"""
