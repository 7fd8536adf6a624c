"""What every worker stands on: leases pulled from the tasks service, and a child process that is fed and watched.

`leases` talks to `WorkerService`; `supervisor` keeps a child alive and `child` is that child's side; `wire` is what the
two say to each other. Nothing here knows a task type, a model or a store.
"""
