"""A schema with the outbox and the idempotency keys, and what stands on it."""

from collections.abc import AsyncIterator

import psycopg
import pytest
from sqlalchemy import MetaData
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.schema import CreateIndex, CreateTable

from meshkit.db import Database
from meshkit.idempotency import idempotency_table
from meshkit.leadership import CREATE_LEADERS
from meshkit.outbox import outbox_table
from tests.integration.meshkit.serving import Mesh

SCHEMA = "meshkit_test"


def ddl() -> list[str]:
    metadata = MetaData()
    dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call] # SQLAlchemy leaves it untyped
    statements = []
    for table in (outbox_table(metadata), idempotency_table(metadata)):
        statements.append(str(CreateTable(table).compile(dialect=dialect)))
        statements.extend(str(CreateIndex(index).compile(dialect=dialect)) for index in table.indexes)
    return statements


@pytest.fixture
async def db(fresh_postgres_dsn: str) -> AsyncIterator[Database]:
    async with await psycopg.AsyncConnection.connect(fresh_postgres_dsn, autocommit=True) as conn:
        await conn.execute(f"CREATE SCHEMA {SCHEMA}")
    database = Database(fresh_postgres_dsn, schema=SCHEMA, max_size=8)
    await database.open()
    async with database.transaction() as conn:
        for statement in (*ddl(), CREATE_LEADERS):
            await conn.execute(statement)
        await conn.execute("CREATE TABLE items (id int PRIMARY KEY, value text)")
    yield database
    await database.close()


@pytest.fixture
async def mesh() -> AsyncIterator[Mesh]:
    """A server of tasks, serving."""
    mesh = Mesh()
    await mesh.server.start()
    yield mesh
    await mesh.server.stop(0)
