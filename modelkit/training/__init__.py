"""Train a LoRA, or all weights of the same layers, on pictures with captions, for a model of the FLUX architecture.

Owns the run from a dataset of finished pictures to an adapter file; it knows no service and no store. A caller gives
`trainer.train` a plan, a dataset, a folder of its own and a watcher, which hears of every step and of every file that
is whole, and is asked between two steps whether to stop.

- `plan` `dataset` `watching` `errors`: the plan, the pictures, what a caller hears and answers, failures; free of torch
- `profile` fits a plan to its model's card; free of torch
- `encoding` turns captions and pictures into what the network reads, with one model in memory at a time
- `network` loads the transformer and its adapter, `flow` has the noise levels and the distance, `batches` the order of
  the pictures
- `objective` is the loss of a step, `priors` what the model drew before and is to keep, `optimizing` the optimiser
- `sampling` draws pictures while the network trains, `validation` measures it on noise that stays the same
- `state` writes what a run goes on from exactly, `adapterfile` writes the result, `files` puts both in place whole
- `trainer` is the run

Files appear whole: written beside their place, synced, renamed. A run that was stopped anywhere and resumed from its
newest state ends with the same weights as an unbroken one: bit for bit on a processor, and on a GPU up to the order in
which its kernels add.
"""
