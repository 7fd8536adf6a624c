"""The schema `training`, one revision a change."""
