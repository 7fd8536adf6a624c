"""Inputs that callers send, checked before the task exists: images and lists of images, LoRA adapters."""
