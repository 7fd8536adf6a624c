import os
import subprocess
import sys

import psycopg

from meshkit import topology


def test_one_process_migrates_the_schemas_of_all_services(fresh_postgres_dsn: str) -> None:
    environment = {**os.environ, "ATELIER_DATABASE_URL": fresh_postgres_dsn}
    run = subprocess.run(
        [sys.executable, "-m", "meshkit.migrations"], env=environment, check=False, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    with psycopg.connect(fresh_postgres_dsn) as conn:
        rows = conn.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'alembic_version'").fetchall()
    assert {name for (name,) in rows} == {spec.schema for spec in topology.SERVICES if spec.schema}


def test_without_a_database_it_fails() -> None:
    environment = {**os.environ, "ATELIER_DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none"}
    run = subprocess.run(
        [sys.executable, "-m", "meshkit.migrations"], env=environment, check=False, capture_output=True, text=True
    )
    assert run.returncode == 1
