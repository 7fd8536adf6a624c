"""Alerts: events that somebody is told of at once, by which rule, and what they answer."""
