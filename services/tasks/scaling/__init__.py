"""Scaling: how much work there is for workers, and which of them are on their way out."""
