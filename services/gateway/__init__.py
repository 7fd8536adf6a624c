"""The gateway: HTTP/JSON, SSE and uploads in front of the mesh.

It owns the public surface: routes, JSON, the OpenAPI document, the first check of tokens, stored images and signed
URLs. It calls whatever services the contracts bind to HTTP, holds no table and no subject, and knows no business rule:
what a request means is decided by the service that answers it.
"""
