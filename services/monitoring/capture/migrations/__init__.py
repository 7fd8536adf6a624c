"""The schema `capture`, one revision a change."""
