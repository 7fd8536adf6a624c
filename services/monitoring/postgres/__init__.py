"""The monitoring service's SQL."""
