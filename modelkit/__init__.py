"""Models and images: load models under a budget, sample and adapt them; enlarge, understand and frame images.

It imports no service and nothing of the mesh. `card`, `errors`, `framing`, `pictures`, `requests` and `sizes` import no
torch and may be imported anywhere. The other modules belong in child processes, which own the device.
"""
