"""The worker: a process that owns a device and executes tasks.

It owns no table. It calls `atelier.tasks.v1.WorkerService` for work, the object store for inputs and results, and
listens on the core NATS subject `atelier.cancel.<session>`; it serves `atelier.inference.v1.InferenceService`. The
parent holds leases, storage and HTTP and never imports torch; `child` is the process that does.
"""
