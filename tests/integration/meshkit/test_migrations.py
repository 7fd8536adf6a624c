import os
import subprocess
import sys

import psycopg

from meshkit import topology


def migrate(dsn: str, *roles: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "meshkit.migrations", *roles]
    environment = {**os.environ, "ATELIER_DATABASE_URL": dsn}
    return subprocess.run(command, env=environment, check=False, capture_output=True, text=True)


def schemas_of(dsn: str) -> set[str]:
    with psycopg.connect(dsn) as conn:
        rows = conn.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version'").fetchall()
    return {name for (name,) in rows}


def test_one_process_migrates_the_schemas_of_all_services_and_of_those_that_it_is_told_of(
    fresh_postgres_dsn: str,
) -> None:
    every = {spec.schema for spec in topology.SERVICES if spec.schema}
    assert migrate(fresh_postgres_dsn, "no_such_service").returncode == 1
    assert schemas_of(fresh_postgres_dsn) == set()
    run = migrate(fresh_postgres_dsn)
    assert run.returncode == 0, run.stderr
    assert schemas_of(fresh_postgres_dsn) == every
    run = migrate(fresh_postgres_dsn, topology.CAPTURE.role)
    assert run.returncode == 0, run.stderr
    assert schemas_of(fresh_postgres_dsn) == every | {topology.CAPTURE.schema}


def test_without_a_database_it_fails() -> None:
    assert migrate("postgresql://nobody@127.0.0.1:1/none").returncode == 1
