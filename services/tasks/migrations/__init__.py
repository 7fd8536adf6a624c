"""The schema `tasks`, one revision a change."""
