"""The schema `monitoring`, one revision a change."""
