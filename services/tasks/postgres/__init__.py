"""The schema `tasks` in PostgreSQL: the only SQL of the service.

Locks are always taken in this order, so that no two transactions wait for each other: rows of `sessions`, of `queues`,
of `tasks` (by id), of `queue_tenants` (by queue and tenant) with their `queue_lanes`. Counters therefore come last.
Rows of `provider_gates` come after those of `tasks`; dispatch rounds take them before, and wait for no task afterwards.
"""
