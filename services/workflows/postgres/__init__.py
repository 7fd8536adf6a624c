"""The only SQL of the workflows service."""
