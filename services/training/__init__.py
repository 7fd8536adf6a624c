"""Training jobs and the LoRA library. No release serves them yet: the package holds its place."""
