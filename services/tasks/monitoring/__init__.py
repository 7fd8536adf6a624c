"""Monitoring of tasks, queues and workers: what operators see of the rows that this service owns."""
