"""The only SQL of the training service."""
