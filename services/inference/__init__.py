"""The inference worker: executes tasks on its own device, and by calls to providers.

It is a profile on `meshkit.worker`: the handlers of `tasktypes` work on the device, those of `providers` call. It owns
no table. It calls `atelier.tasks.v1.WorkerService` for work, the object store for inputs and results, and
listens on the core NATS subjects `atelier.cancel.<session>` and `atelier.provider_wake.<task>.<request>`, the second of
which it also publishes; it serves `atelier.inference.v1.InferenceService`. The parent holds leases, storage and HTTP
and never imports torch; `child` is the process that does, and `results` its last look at what leaves it.
`evaluation` is a process of its own, which judges pictures.
"""
