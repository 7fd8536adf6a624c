"""The schema `workflows`, one revision a change."""
