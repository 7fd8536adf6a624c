"""The only SQL of capture: one method, one transaction."""
