"""Copies of a mesh: the database first, then the objects, so that each row's objects are in the copy.

A copy is a folder: `database.dump` (pg_dump, custom format), `objects.tar`, and `backup.json`, written last. Services
may run while it is made. Objects of tasks, workflows and trainings that are newer than the dump belong to
what the dump may not know; after a restore their services compare them with their rows and delete them.
"""

import datetime as dt
import json
import os
import re
import subprocess
import tarfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, cast
from uuid import UUID

import psycopg
import urllib3
from minio import Minio
from minio.error import S3Error
from psycopg import conninfo, sql

from atelier_cli.errors import CliError
from meshkit.catalog import TASK_TYPES
from meshkit.topology import OPTIONAL, SERVICES

SCHEMAS: Final = tuple(spec.schema for spec in (*SERVICES, *OPTIONAL) if spec.schema)
SETTINGS: Final = (
    "ATELIER_DATABASE_URL",
    *(f"ATELIER_S3_{name}" for name in ("ENDPOINT", "ACCESS_KEY", "SECRET_KEY", "SECURE", "REGION", "BUCKET")),
)
"""What `Stores.of` reads."""
_TYPE: Final = "ATELIER.content_type"
# In the folders of task types alone: a tenant's own images may have paths of the same form elsewhere.
_FOLDERS: Final = "|".join(sorted({re.escape(spec.prefix) for spec in TASK_TYPES.values()}))
_OF_A_TASK: Final = re.compile(
    rf"tenants/([^/]+)/((?:{_FOLDERS})/([0-9a-f]{{8}}(?:-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}})/)(?:inputs|\d+)/"
)

_OF_A_WORKFLOW: Final = re.compile(
    r"tenants/([^/]+)/workflows/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/\d+-[a-z0-9_]+(?:-\d+)?\.\w+"
)

_OF_A_TRAINING: Final = re.compile(
    r"tenants/([^/]+)/(trainings/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/)(?:inputs|dataset|state|saves|samples)/"
)


@dataclass(frozen=True, slots=True)
class Copied:
    """What a copy holds.

    Attributes:
        objects: Their number.
        size: Their bytes.
    """

    objects: int
    size: int


@dataclass(frozen=True, slots=True)
class Stores:
    """The database and the bucket of a mesh, with the programs for its database."""

    database_url: str
    client: Minio
    bucket: str
    programs: Path

    @classmethod
    def of(cls, environment: Mapping[str, str], programs: Path) -> "Stores":
        """Read them from the environment of the tasks service."""
        client = Minio(
            environment["ATELIER_S3_ENDPOINT"],
            access_key=environment["ATELIER_S3_ACCESS_KEY"],
            secret_key=environment["ATELIER_S3_SECRET_KEY"],
            secure=environment.get("ATELIER_S3_SECURE", "").lower() in {"1", "true", "yes", "on"},
            region=environment.get("ATELIER_S3_REGION") or "us-east-1",
            http_client=urllib3.PoolManager(timeout=urllib3.Timeout(30), retries=urllib3.Retry(3)),
        )
        return cls(environment["ATELIER_DATABASE_URL"], client, environment["ATELIER_S3_BUCKET"], programs)

    def save(self, folder: Path) -> Copied:
        """Write a copy into an empty folder.

        Raises:
            CliError: pg_dump failed.
        """
        began = dt.datetime.now(dt.UTC)
        schemas = [f"--schema={schema}" for schema in SCHEMAS]
        self._run("pg_dump", "--format=custom", "--no-owner", *schemas, f"--file={folder / 'database.dump'}")
        count = size = 0
        with tarfile.open(folder / "objects.tar", "w") as archive:
            for found in self.client.list_objects(self.bucket, prefix="tenants/", recursive=True):
                name = str(found.object_name)
                try:
                    answer = self.client.get_object(self.bucket, name)
                except S3Error as error:
                    if error.code == "NoSuchKey":  # deleted since it was listed
                        continue
                    raise
                member = tarfile.TarInfo(name)
                member.size = int(answer.headers["content-length"])
                member.mtime = int(found.last_modified.timestamp()) if found.last_modified else 0
                member.pax_headers = {_TYPE: answer.headers.get("content-type", "application/octet-stream")}
                try:
                    archive.addfile(member, answer)
                finally:
                    answer.close()
                    answer.release_conn()
                count, size = count + 1, size + member.size
        told = {"began": began.isoformat(), "schemas": SCHEMAS, "objects": count, "bytes": size}
        (folder / "backup.json").write_text(json.dumps(told, indent=2) + "\n")
        return Copied(count, size)

    def restore(self, folder: Path) -> Copied:
        """Replace the database's schemas by those of a copy, write its objects, and have newer ones swept.

        Raises:
            CliError: It is no whole copy, or pg_restore failed; the database is then as it was.
        """
        if not (folder / "backup.json").exists():
            raise CliError(f"{folder} holds no whole backup: backup.json is missing.")
        told = json.loads((folder / "backup.json").read_text())
        began = dt.datetime.fromisoformat(told["began"]).timestamp()
        self._restore_database(folder / "database.dump")
        count = size = 0
        older: set[str] = set()
        with tarfile.open(folder / "objects.tar") as archive:
            for member in archive:
                content = cast("BinaryIO | None", archive.extractfile(member))
                if content is not None:
                    kind = member.pax_headers.get(_TYPE, "application/octet-stream")
                    self.client.put_object(self.bucket, member.name, content, member.size, kind)
                    count, size = count + 1, size + member.size
                    if member.mtime < int(began) and (
                        _OF_A_TASK.match(member.name) or _OF_A_TRAINING.match(member.name)
                    ):
                        older.add(member.name)
        self._sweep_later(older)
        return Copied(count, size)

    def _restore_database(self, dump: Path) -> None:
        # The old schemas step aside first: they come back if the dump cannot be restored.
        with psycopg.connect(self.database_url) as connection:
            for schema in SCHEMAS:
                self._rename(connection, schema, f"{schema}_replaced")
        try:
            self._run("pg_restore", "--single-transaction", "--no-owner", "--exit-on-error", str(dump))
        except CliError:
            with psycopg.connect(self.database_url) as connection:
                for schema in SCHEMAS:
                    self._rename(connection, f"{schema}_replaced", schema)
            raise
        with psycopg.connect(self.database_url) as connection:
            for schema in SCHEMAS:
                replaced = sql.Identifier(f"{schema}_replaced")
                connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(replaced))

    @staticmethod
    def _rename(connection: psycopg.Connection, old: str, new: str) -> None:
        found = connection.execute("SELECT 1 FROM pg_namespace WHERE nspname = %s", (old,)).fetchone()
        if found is not None:
            # Left by a restore that was cut off after the dump was in.
            connection.execute(sql.SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(sql.Identifier(new)))
            connection.execute(sql.SQL("ALTER SCHEMA {} RENAME TO {}").format(sql.Identifier(old), sql.Identifier(new)))

    def _sweep_later(self, older: AbstractSet[str]) -> None:
        """Note the folders that have newer objects: services delete there what no row names.

        A note of a training is for one that the dump does not know: what the others wrote goes with their other files.

        Args:
            older: Objects that were there before the dump. It knows what they belong to, or they are a tenant's own.
        """
        listed = self.client.list_objects(self.bucket, prefix="tenants/", recursive=True)
        names = [name for each in listed if (name := str(each.object_name)) not in older]
        found = {match.groups() for name in names if (match := _OF_A_TASK.match(name))}
        owners = {match.groups() for name in names if (match := _OF_A_WORKFLOW.fullmatch(name))}
        trainings = {match.groups() for name in names if (match := _OF_A_TRAINING.match(name))}
        with psycopg.connect(self.database_url) as connection, connection.cursor() as cursor:
            cursor.executemany(
                "INSERT INTO tasks.object_sweeps (task_id, tenant, prefix, due_at) VALUES (%s, %s, %s, now()) "
                "ON CONFLICT DO NOTHING",
                [(UUID(task), tenant, prefix) for tenant, prefix, task in sorted(found)],
            )
            cursor.execute("SELECT to_regclass('workflows.file_sweeps') IS NOT NULL")
            if owners and cursor.fetchone() == (True,):  # a copy of an older mesh has no such table
                cursor.executemany(
                    "INSERT INTO workflows.file_sweeps (workflow_id, tenant) VALUES (%s, %s) ON CONFLICT DO NOTHING",
                    [(UUID(workflow), tenant) for tenant, workflow in sorted(owners)],
                )
            cursor.execute("SELECT to_regclass('training.object_sweeps') IS NOT NULL")
            if trainings and cursor.fetchone() == (True,):
                cursor.executemany(
                    "INSERT INTO training.object_sweeps (training_id, tenant, path, due_at, is_intent) "
                    "VALUES (%s, %s, %s, now(), true) ON CONFLICT DO NOTHING",
                    [(UUID(training), tenant, path) for tenant, path, training in sorted(trainings)],
                )

    def _run(self, program: str, *arguments: str) -> None:
        """Run a program of PostgreSQL; the password goes by its environment, which other users cannot read."""
        parts = conninfo.conninfo_to_dict(self.database_url)
        password = str(parts.pop("password", "") or "")
        target = f"--dbname={conninfo.make_conninfo('', **parts)}"
        done = subprocess.run(
            [str(self.programs / program), target, *arguments],
            env={**os.environ, **({"PGPASSWORD": password} if password else {})},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            raise CliError(f"{program} failed: {done.stderr.strip()}")
