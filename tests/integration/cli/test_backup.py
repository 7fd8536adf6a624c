"""Backup and restore on servers that the environment names."""

import io
import os
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import psycopg
import pytest

from atelier_cli.backup import Stores
from atelier_cli.embedded.postgres import programs
from atelier_cli.errors import CliError
from tests.conftest import S3Store


@pytest.fixture
def named(mesh_dsn: str, s3: S3Store) -> dict[str, str]:
    """The environment of a mesh on servers of somebody else, with all schemas and one tenant's image."""
    bucket = s3.bucket()
    s3.server.client().put_object(bucket, "tenants/acme/a.png", io.BytesIO(b"an image"), 8)
    return {
        "ATELIER_DATABASE_URL": mesh_dsn,
        "ATELIER_NATS_URL": "nats://127.0.0.1:9",
        "ATELIER_S3_ENDPOINT": s3.endpoint,
        "ATELIER_S3_ACCESS_KEY": s3.access_key,
        "ATELIER_S3_SECRET_KEY": s3.secret_key,
        "ATELIER_S3_BUCKET": bucket,
    }


def rows(dsn: str, query: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(dsn, autocommit=True) as connection:
        cursor = connection.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def test_named_servers_are_restored_from_a_copy(named: dict[str, str], s3: S3Store, tmp_path: Path) -> None:
    dsn, known, later = named["ATELIER_DATABASE_URL"], uuid.uuid4(), uuid.uuid4()
    rows(dsn, "INSERT INTO tasks.task_ids (id, tenant, deleted_at) VALUES (%s, 'acme', now())", known)
    copy = tmp_path / "copy"
    copy.mkdir()
    assert Stores.of(named, programs()).save(copy).objects == 1
    rows(dsn, "INSERT INTO tasks.task_ids (id, tenant, deleted_at) VALUES (%s, 'acme', now())", later)
    s3.server.client().remove_object(named["ATELIER_S3_BUCKET"], "tenants/acme/a.png")

    done = subprocess.run(
        [sys.executable, "-m", "atelier_cli", "restore", str(copy), "--data", str(tmp_path / "mesh")],
        env={**os.environ, **named},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert rows(dsn, "SELECT id FROM tasks.task_ids") == [(known,)]
    assert s3.server.client().get_object(named["ATELIER_S3_BUCKET"], "tenants/acme/a.png").read() == b"an image"


def test_a_dump_that_cannot_be_read_leaves_the_database_as_it_was(named: dict[str, str], tmp_path: Path) -> None:
    dsn, known = named["ATELIER_DATABASE_URL"], uuid.uuid4()
    rows(dsn, "INSERT INTO tasks.task_ids (id, tenant, deleted_at) VALUES (%s, 'acme', now())", known)
    stores = Stores.of(named, programs())
    stores.save(tmp_path)
    dump = tmp_path / "database.dump"
    dump.write_bytes(dump.read_bytes()[: dump.stat().st_size // 2])
    with pytest.raises(CliError, match="pg_restore failed"):
        stores.restore(tmp_path)
    assert rows(dsn, "SELECT id FROM tasks.task_ids") == [(known,)]
    names = [name for (name,) in rows(dsn, "SELECT nspname::text FROM pg_namespace WHERE nspname LIKE '%%replaced'")]
    assert names == []
