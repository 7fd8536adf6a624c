"""What every service of the mesh stands on, and no service itself.

Owns no table and no subject of its own: the outbox and the idempotency keys it describes live in the schema of the
service that uses them. Imports no service, no model code, and nothing heavy before it is needed.

- `errors` `status` `validation`: what may go wrong, how it crosses gRPC, what a request must hold
- `config` `logging` `tracing` `metrics` `lifecycle` `loops`: a process and how it is watched
- `auth` `jwks`: who calls and what they may do
- `server` `channel` `client`: gRPC on both ends
- `db` `migration` `revisions` `outbox` `idempotency`: PostgreSQL, the truth
- `bus`: NATS, the news
- `objects` `chunks` `images` `fetcher`: bytes that others sent, by one door each
- `worker`: what a worker's supervisor and its child share
"""
