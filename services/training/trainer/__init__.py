"""The trainer: a worker that executes training jobs on its device, one at a time.

It is a profile on `meshkit.worker`, owns no table, and serves health alone. It leases jobs of the queue `training` from
`atelier.tasks.v1.WorkerService`, is told what to do by `atelier.training.v1.TrainerService` and tells it what comes of
it, reads pictures and writes objects in the store, and listens on `atelier.cancel.<session>`.

- `handler` takes a job; `attempt` carries it from its pictures to its adapter
- `dataset` makes the dataset, in a process that imports no torch; `prepared` brings it to the store and back
- `base_models` knows the models that are trained here, `planning` what to do with them
- `child` is the process that trains, started for one job; `running` is that job
- `telling` tells the training service of steps, `keeping` stores what is whole, one file after the other
- `service_calls` are the calls of `TrainerService`

It works for ever, or, for Kubernetes Jobs, on one job alone: `meshkit.worker.one_lease` tells when that is over.

The parent imports no torch. What a job wrote to the disk is gone with its attempt.
"""
