"""What works: every part is asked, at once for an answer and every few seconds for a verdict over time."""
