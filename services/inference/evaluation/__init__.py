"""The evaluation role: judges pictures, by networks of its own.

It is a process of its own, free of torch, and owns no table: what it counts of its evaluators is lost with it. It
serves `atelier.evaluation.v1.EvaluationService`. It reads the object store for pictures that callers name, and deletes
what the gateway staged for it.

Rooms:
    `domain` has what is wanted and what is found, `record` how well an evaluator does, with its breaker. `service` is
    the use case, `pictures` gets the picture, `local` judges it by networks. `convert` is between domain and wire,
    `servicer` speaks gRPC, `composition` builds the role.
"""
