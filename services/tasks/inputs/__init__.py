"""What callers send along: images as data, uploads, addresses, paths, LoRA adapters; judged before the task exists."""
