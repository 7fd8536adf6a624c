"""The evaluation role: judges pictures, by networks of its own and by models of providers.

It is a process of its own, free of torch, and owns no table: what it counts of its evaluators is lost with it. It
serves `atelier.evaluation.v1.EvaluationService`. It reads the object store for pictures that callers name, and deletes
what the gateway staged for it. Models are called by the clients of `services.inference.providers`.

Rooms:
    `domain` has what is wanted and what is found, `record` how well an evaluator does, with its breaker. `service` is
    the use case, `pictures` gets the picture, `local` judges it by networks, `models` has a language model judge it, by
    what `questions` asks. `convert` is between domain and wire, `servicer` speaks gRPC, `composition` builds the role.
"""
