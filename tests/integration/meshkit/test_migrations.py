"""Migrations of all services by a command, and of one schema by several replicas at once."""

import asyncio
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from meshkit import topology
from meshkit.db import migrate
from meshkit.errors import MeshError
from meshkit.migration import upgrade


def migrate_all(dsn: str, *roles: str) -> subprocess.CompletedProcess[str]:
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
    assert migrate_all(fresh_postgres_dsn, "no_such_service").returncode == 1
    assert schemas_of(fresh_postgres_dsn) == set()
    run = migrate_all(fresh_postgres_dsn)
    assert run.returncode == 0, run.stderr
    assert schemas_of(fresh_postgres_dsn) == every
    run = migrate_all(fresh_postgres_dsn, topology.CAPTURE.role)
    assert run.returncode == 0, run.stderr
    assert schemas_of(fresh_postgres_dsn) == every | {topology.CAPTURE.schema}


def test_without_a_database_it_fails() -> None:
    assert migrate_all("postgresql://nobody@127.0.0.1:1/none").returncode == 1


ENV = "from meshkit.migration import run_env\nrun_env()\n"
REVISION = """
from alembic import op
import sqlalchemy as sa
revision = {own!r}
down_revision = {before!r}
def upgrade():
    op.create_table({table!r}, sa.Column("id", sa.Integer, primary_key=True))
def downgrade():
    op.drop_table({table!r})
"""


@pytest.fixture
def script_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    name = f"migrations_{uuid.uuid4().hex}"
    folder = tmp_path / name
    (folder / "versions").mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "env.py").write_text(ENV)
    (folder / "versions" / "one.py").write_text(REVISION.format(own="1", before=None, table="first"))
    (folder / "versions" / "two.py").write_text(REVISION.format(own="2", before="1", table="second"))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    sys.modules.pop(name, None)


async def test_replicas_migrate_at_once_and_one_works(fresh_postgres_dsn: str, script_package: str) -> None:
    await asyncio.gather(*(migrate(fresh_postgres_dsn, "fresh", script_package) for _ in range(3)))
    await migrate(fresh_postgres_dsn, "other", script_package)
    async with await psycopg.AsyncConnection.connect(fresh_postgres_dsn) as conn:
        cursor = await conn.execute(
            "SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('fresh', 'other')"
        )
        tables = set(await cursor.fetchall())
    names = ("alembic_version", "first", "second")
    assert tables == {(schema, name) for schema in ("fresh", "other") for name in names}


async def test_a_schema_that_is_up_to_date_starts_no_process(
    fresh_postgres_dsn: str, script_package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    await migrate(fresh_postgres_dsn, "fresh", script_package)
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    await migrate(fresh_postgres_dsn, "fresh", script_package)


async def test_an_older_version_starts_beside_a_newer_schema(
    fresh_postgres_dsn: str, script_package: str, tmp_path: Path
) -> None:
    newer = tmp_path / script_package / "versions" / "three.py"
    newer.write_text(REVISION.format(own="3", before="2", table="third"))
    await migrate(fresh_postgres_dsn, "fresh", script_package)
    newer.unlink()
    await migrate(fresh_postgres_dsn, "fresh", script_package)
    async with await psycopg.AsyncConnection.connect(fresh_postgres_dsn) as conn:
        cursor = await conn.execute("SELECT version_num FROM fresh.alembic_version")
        assert await cursor.fetchone() == ("3",)


async def test_a_failed_migration_leaves_nothing(fresh_postgres_dsn: str, script_package: str, tmp_path: Path) -> None:
    broken = REVISION.format(own="3", before="2", table="third").replace("def downgrade", "    1 / 0\ndef downgrade")
    (tmp_path / script_package / "versions" / "three.py").write_text(broken)
    with pytest.raises(MeshError) as caught:
        await migrate(fresh_postgres_dsn, "fresh", script_package)
    assert caught.value.reason == "MIGRATION_FAILED"
    async with await psycopg.AsyncConnection.connect(fresh_postgres_dsn) as conn:
        cursor = await conn.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'fresh'")
        assert await cursor.fetchone() == (0,)


INDEX = """
from alembic import op
from meshkit.migration import beside_writers
revision = "3"
down_revision = "2"
def upgrade():
    op.execute("ALTER TABLE second ADD COLUMN name text")
    with beside_writers():
        op.execute("DROP INDEX CONCURRENTLY IF EXISTS first_even")
        op.execute("CREATE INDEX CONCURRENTLY first_even ON first (id) WHERE id % 2 = 0")
    op.execute("ALTER TABLE second ADD COLUMN other text")
def downgrade():
    pass
"""


async def test_an_index_is_built_beside_writers_by_one_of_the_replicas(
    fresh_postgres_dsn: str, script_package: str, tmp_path: Path
) -> None:
    await migrate(fresh_postgres_dsn, "fresh", script_package)
    versions = tmp_path / script_package / "versions"
    (versions / "three.py").write_text(INDEX)
    async with (
        await psycopg.AsyncConnection.connect(fresh_postgres_dsn, options="-c search_path=fresh") as writer,
        await psycopg.AsyncConnection.connect(fresh_postgres_dsn, autocommit=True) as other,
    ):
        await writer.execute("INSERT INTO first VALUES (2)")
        replicas = [asyncio.create_task(migrate(fresh_postgres_dsn, "fresh", script_package)) for _ in range(2)]

        async def builds() -> bool:
            cursor = await other.execute("SELECT count(*) FROM pg_index WHERE NOT indisvalid")
            return await cursor.fetchone() == (1,)

        async with asyncio.timeout(60):
            while not await builds():  # noqa: ASYNC110 -- the server builds it in its own time
                await asyncio.sleep(0.02)
        # The index waits for the writer, and no other writer waits for the index.
        await other.execute("SET lock_timeout TO 1000")
        await other.execute("INSERT INTO fresh.first VALUES (4)")
        await asyncio.sleep(2.5)  # longer than a migration waits for a lock
        assert await builds()
        await writer.commit()
        await asyncio.gather(*replicas)
        assert not await builds()
        await other.execute("SET enable_seqscan TO off")
        cursor = await other.execute("EXPLAIN SELECT id FROM fresh.first WHERE id % 2 = 0")
        assert "first_even" in str(await cursor.fetchall())
        cursor = await other.execute("SELECT version_num FROM fresh.alembic_version")
        assert await cursor.fetchone() == ("3",)


async def test_an_index_whose_building_was_killed_is_built_anew(
    fresh_postgres_dsn: str, script_package: str, tmp_path: Path
) -> None:
    versions = tmp_path / script_package / "versions"
    # As a run leaves it that was killed before the end: a unique index over values that are not.
    left = INDEX.replace("CREATE INDEX", "CREATE UNIQUE INDEX").replace("(id) WHERE id % 2 = 0", "((id % 2))")
    (versions / "three.py").write_text(left)
    await asyncio.to_thread(upgrade, fresh_postgres_dsn, "fresh", script_package, "2")
    async with await psycopg.AsyncConnection.connect(fresh_postgres_dsn, autocommit=True) as conn:
        await conn.execute("INSERT INTO fresh.first VALUES (2), (4)")
        with pytest.raises(MeshError):
            await migrate(fresh_postgres_dsn, "fresh", script_package)
        cursor = await conn.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'fresh.first_even'::regclass")
        assert await cursor.fetchone() == (False,)
        again = INDEX.replace("ADD COLUMN name", "ADD COLUMN IF NOT EXISTS name")
        (versions / "three.py").write_text(again)
        await migrate(fresh_postgres_dsn, "fresh", script_package)
        cursor = await conn.execute("SELECT indisvalid FROM pg_index WHERE indexrelid = 'fresh.first_even'::regclass")
        assert await cursor.fetchone() == (True,)
