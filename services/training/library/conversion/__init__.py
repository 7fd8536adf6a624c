"""Files of `torch.save` made safetensors, without torch and without unpickling: nothing in them is called or imported.

`pickles` follows a pickle's opcodes and knows tensors alone, `archives` finds them in both of torch's containers,
`writing` writes what they describe, `child` does so in a process that may do nothing else, `jail` takes its rights
away, and `converter` starts it.
"""
