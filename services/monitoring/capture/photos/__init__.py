"""Photos as rows: one content of one file each, and what was found on it."""
