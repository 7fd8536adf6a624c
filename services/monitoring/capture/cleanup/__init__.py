"""Retention: what is old, or more than may be kept, is forgotten; files go only where a setting says so."""
