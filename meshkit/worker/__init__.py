"""What every worker stands on: leases pulled from the tasks service, and runners that execute them.

`host` puts a worker together from a profile. `leases` keeps a session with `WorkerService`, `attempts` carries each
attempt from its lease to its end: `preparer` and `inputs` fetch what it needs, a `runner` executes it, `uploads`
stores what it made, `ends` tells the service.

The device runner has a child process: `supervisor` is the parent's side of it, `child` and `batch_runner` are its own.
`child_spans` brings the child's spans to the parent. The call runner awaits other services in the parent.

No service is known here, no model and no torch: handlers bring what is particular to a task type or a provider.
"""
