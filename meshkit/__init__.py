"""The library that every service of the mesh uses.

Owns no table and no subject: the tables of the outbox and of idempotency keys belong to the schema of the service that
uses them. Imports no service and no model code, and loads what is large only where it is used.

- `errors` `status` `validation` `freeform` `steering`: domain errors, their gRPC status, the rules of requests
- `likeness`: networks that pictures are compared by, as settings name them
- `config` `logging` `structlog_alone` `tracing` `metrics` `lifecycle` `loops` `microbatch` `lingers`: a process and its
  background work
- `spans` `span_export` `otlp`: what was done under a trace, and its way to a collector
- `children` `wire` `last_words`: processes below a process, what the two say to each other, and how one ended
- `auth` `jwks` `scopes` `access`: who calls, what they may do, which tenant they act for
- `topology`: the one table of services; `quotas` `stored_bytes`: what a tenant may take of what all share
- `catalog` `spelling` `revisions` `moments` `paths`: what the contract declares, and names, versions, times and paths
- `identifiers`: as people type them
- `provider_settings`: what callers may not say in settings of providers; `accounts`: what opens accounts at them
- `cutouts`: names of the networks that remove backgrounds; `fashn`: FASHN's models, and what each takes
- `server` `interceptors` `recalling` `decoding` `channel` `client` `repeating` `bundling` `unbundling`: gRPC on both
  ends, and calls that travel together
- `certificates`: by which a process belongs to the mesh
- `health`: whether a service and what it stands on work
- `estimates` `answers`: answers whose total is an estimate, or whose HTTP status is not 200
- `db` `pipeline` `pipeline_pool` `migration` `outbox` `leadership` `idempotency`: PostgreSQL, which holds all state
- `counting`: counters that notes of changes are folded into, and totals of what no counter has
- `retention` `retention_calls` `task_files`: what has ended is deleted at an age, unless something names its files
- `bus` `holding` `stream` `publishing` `following` `event_lag` `eventjson`: NATS, which only notifies
- `supervision`: loops, reported and told over NATS; `live`: what happens in the mesh, for whoever listens
- `objects` `s3client` `chunks` `copies` `staging` `media_urls`: files
- `loras`: where LoRAs lie, and how callers name them
- `images`: untrusted images, decoded in child processes under one budget
- `fetcher` `pinned` `lookups`: addresses that callers name; `retry_after`: how long others ask to be left alone
- `places`: shares of what tenants hold for a while
- `transcoding`: JSON over HTTP to gRPC and back
- `worker`: what every worker uses
"""
