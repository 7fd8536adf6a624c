"""Runs the revisions on the connection that `meshkit.db.migrate` opened."""

from meshkit.migration import run_env

run_env()
