"""What every torch process stands on: models loaded, placed, adapted and sampled; images enlarged, understood, framed.

It imports no service and nothing of the mesh. `card`, `sizes`, `framing` and `errors` are free of torch and may be
imported anywhere; `residency`, `flux`, `adapters` and `previews` belong in child processes, which own the device.
"""
