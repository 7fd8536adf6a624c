"""The trainer: the worker that makes datasets and trains adapters; torch is loaded in its child alone."""
