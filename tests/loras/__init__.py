"""LoRA files as training tools name their layers."""
