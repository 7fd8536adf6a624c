"""The LoRA library: files that come in from strangers and from trainings, and go out to workers.

Owns:
    Table `loras` of the schema `training`.
    Objects below `loras/` (what tasks may name), `bin/loras/` (what was deleted) and `lora-thumbnails/`, of a tenant or
    of the tenant whose LoRAs all may use. Tasks and workers look there by path; the rows tell what the files are.
Serves:
    `atelier.training.v1.LoraService`.

Rooms:
    Pure: `domain`, `names`. `bases` knows the models' layers and `judging` a file's, `conversion` makes files of torch
    safetensors. `service` holds the use cases, `store` what they need of a database, `trained` puts in what trainings
    end with, `convert` is between domain and wire, `servicer` speaks gRPC, `loops` finishes what a crash left.
"""
