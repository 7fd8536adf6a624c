"""PostgreSQL: a pool of connections, transactions, retries and migrations.

Every service has a schema of its own, which is the whole search path of its connections. A broken connection is thrown
away by the pool; work that was under way on it is repeated by `Database.retrying`.
"""

from __future__ import annotations

import asyncio
import os
import random
import secrets
import select
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import psycopg
from psycopg import errors as pg_errors
from psycopg import sql
from psycopg_pool import AsyncConnectionPool, PoolClosed, PoolTimeout

from meshkit import revisions
from meshkit.errors import ErrorKind, MeshError, no_room
from meshkit.logging import get_logger
from meshkit.pipeline import STALE, LocalSettings, Pipeline, connect
from meshkit.pipeline_pool import PipelinePool

if TYPE_CHECKING:
    from meshkit.config import MeshSettings

_log = get_logger(__name__)
_T = TypeVar("_T")

DirectConnection = psycopg.AsyncConnection[Any]


class Rows(Protocol):
    """What a statement answers."""

    async def fetchall(self) -> list[Any]:
        """All rows, as tuples."""
        ...

    async def fetchone(self) -> Any | None:
        """Return the first row, if there is one."""
        ...


class Connection(Protocol):
    """Where statements of a transaction go: a connection of psycopg or a pipeline."""

    async def execute(
        self, query: Any, params: Sequence[Any] | Mapping[str, Any] | None = None, *, binary: bool = False
    ) -> Rows:
        """Send a statement, or add it to what is sent next.

        Args:
            query: The statement, with psycopg's placeholders.
            params: Values of the placeholders.
            binary: Whether rows come in binary.
        """
        ...


# The server ended a session that stood still within a transaction.
_STOOD_STILL = ("25P03", "25P04")
_RETRYABLE = (pg_errors.SerializationFailure, pg_errors.DeadlockDetected, pg_errors.LockNotAvailable, *STALE)
# The server is shutting down, was killed, or is starting: a new connection may work.
_LOST_STATES = frozenset({"57P01", "57P02", "57P03", "57P05", *_STOOD_STILL})
# What the server answers while it cannot write: its disk is full (53100), it lacks another resource, it cannot use its
# files (58030), or it takes only reads (25006), as a replica before it takes over.
_NO_ROOM_CLASS = "53"
_NO_ROOM_STATES = frozenset({"58030", "25006"})
_ATTEMPTS = 6
_FIRST_PAUSE_SECONDS = 0.02
# How long the locks of a client that stands still may hold others up. A process that works comes back within
# milliseconds; one whose event loop is held up for longer has its transaction undone, and repeats it.
_STANDSTILL_MS = 5000
_LOST_PAUSE_SECONDS = 0.25


class DatabaseUnavailableError(MeshError):
    """The database did not answer, or the connection to it was lost."""

    def __init__(self) -> None:
        super().__init__(ErrorKind.UNAVAILABLE, "The database is not reachable", reason="DATABASE_UNAVAILABLE")


class Database:
    """A service's own schema in PostgreSQL.

    Args:
        dsn: `postgresql://` address.
        schema: The service's schema; its connections see nothing else.
        min_size: Connections kept open.
        max_size: Connections at most, and 2 at least; half of them for pipelines.
        statement_timeout_seconds: How long one statement may take; 0 for no limit.
        acquire_timeout_seconds: How long to wait for a free connection.
        application_name: What the server's own views call the connections.
    """

    def __init__(
        self,
        dsn: str,
        *,
        schema: str,
        min_size: int = 1,
        max_size: int = 10,
        statement_timeout_seconds: float = 30.0,
        acquire_timeout_seconds: float = 10.0,
        application_name: str = "atelier",
    ) -> None:
        self.dsn = dsn
        self.schema = schema
        self._kwargs = connection_options(schema, statement_timeout_seconds, application_name)
        self._pipelines = PipelinePool(
            dsn, self._kwargs, size=max(1, max_size // 2), timeout_seconds=acquire_timeout_seconds
        )
        self._pool: AsyncConnectionPool[DirectConnection] = AsyncConnectionPool(
            dsn,
            kwargs=self._kwargs,
            min_size=min_size,
            max_size=max(min_size, max_size - max_size // 2),
            timeout=acquire_timeout_seconds,
            check=_check,
            max_idle=300.0,
            reconnect_timeout=30.0,
            open=False,
            name=schema,
        )
        self._checking: asyncio.Task[None] | None = None
        self._ping: Pipeline | None = None
        self._closed = False

    @classmethod
    def from_settings(cls, settings: MeshSettings, *, schema: str) -> Database:
        """Build the pool that the settings describe.

        Args:
            settings: Settings with `database_url`.
            schema: The service's schema.
        """
        return cls(
            settings.database_url.get_secret_value(),
            schema=schema,
            min_size=settings.database_min_connections,
            max_size=settings.database_max_connections,
            statement_timeout_seconds=settings.database_statement_timeout_seconds,
            application_name=f"atelier-{schema}",
        )

    async def open(self, timeout_seconds: float = 30.0) -> None:
        """Open the pool and wait for its first connections.

        Args:
            timeout_seconds: How long to wait for the server.

        Raises:
            DatabaseUnavailableError: The server did not answer in time.
        """
        await self._pool.open()
        try:
            await self._pool.wait(timeout_seconds)
        except PoolTimeout:
            raise DatabaseUnavailableError from None

    async def close(self) -> None:
        """Close the connections; one that is in use is closed when its user is done."""
        self._closed = True
        conn, self._ping = self._ping, None
        if conn is not None:
            await conn.close()
        await self._pipelines.close()
        await self._pool.close()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[DirectConnection]:
        """Yield a connection with a transaction that is committed at the end of the block, rolled back on an exception.

        Yields:
            The connection; its rows are tuples unless the cursor is asked for another row factory.

        Raises:
            DatabaseUnavailableError: No connection could be had, or it was lost; whether a commit took place is then
                unknown.
        """
        async with self._acquired() as conn, conn.transaction():
            yield conn

    @asynccontextmanager
    async def pipeline(self, *, durable: bool = True, settings: LocalSettings | None = None) -> AsyncIterator[Pipeline]:
        """Yield a transaction whose statements are sent together with the next one whose rows are fetched.

        BEGIN goes with the first and COMMIT with the last, so a hot path saves most of its round trips. An error
        surfaces at a later fetch or at the end of the block. COPY is not supported.

        Args:
            durable: Wait until the commit is on disk. Without, a crash of PostgreSQL itself may undo the latest
                commits, in order and whole: for what is repeated then without harm, as a lease or a mark.
            settings: Settings of the server for this transaction alone, e.g. of its planner.

        Raises:
            DatabaseUnavailableError: No connection could be had, or it was lost; whether a commit took place is then
                unknown.
        """
        try:
            async with self._pipelines.acquire() as pipeline, pipeline.transaction(durable=durable, settings=settings):
                yield pipeline
        except STALE:
            # The other connections have statements prepared for the same tables.
            await self._pipelines.discard()
            raise
        except psycopg.Error as error:
            if not is_lost(error):
                raise _refused(error) from error
            await self._pipelines.discard()
            self._test_idle_connections()
            raise DatabaseUnavailableError from error

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[DirectConnection]:
        """Yield a connection for reading single statements; what is written in the block is committed at its end."""
        async with self._acquired() as conn:
            yield conn

    async def dedicated(self) -> Pipeline:
        """Open a connection outside of the pools; the caller closes it.

        Raises:
            DatabaseUnavailableError: The server did not answer.
        """
        try:
            return await connect(self.dsn, self._kwargs)
        except psycopg.OperationalError:
            raise DatabaseUnavailableError from None

    async def ping(self) -> None:
        """Ask the server for an answer, on a connection of its own: that others are busy is no fault.

        Raises:
            DatabaseUnavailableError: There is none.
        """
        kept, self._ping = self._ping, None
        conn = kept or await self.dedicated()
        try:
            async with conn.transaction():
                await (await conn.execute("SELECT 1")).fetchone()
        except BaseException as error:
            await conn.close()
            if isinstance(error, psycopg.Error):
                raise DatabaseUnavailableError from error
            raise
        # It is not needed where another question was answered meanwhile, or everything closed.
        if self._closed or self._ping is not None:
            await conn.close()
        else:
            self._ping = conn

    async def retrying(self, body: Callable[[], Awaitable[_T]], attempts: int = _ATTEMPTS) -> _T:
        """Run work again that failed by a deadlock, a changed table, a serialization failure or a lost connection.

        The work must open its transaction itself and must be repeatable: a connection lost during the commit leaves
        unknown whether it took place. No connection is waited for twice: whoever asked is to be
        told before its own deadline.

        Args:
            body: The work, without arguments.
            attempts: How often to try in all.

        Returns:
            What the work returned.
        """
        for attempt in range(1, attempts):
            try:
                return await body()
            except _RETRYABLE as error:
                _log.info("transaction_retried", cause=type(error).__name__, attempt=attempt)
                pause = _FIRST_PAUSE_SECONDS * 2**attempt
            except DatabaseUnavailableError as error:
                if isinstance(error.__cause__, PoolTimeout | PoolClosed):
                    raise
                _log.warning("database_connection_lost", attempt=attempt)
                pause = _LOST_PAUSE_SECONDS * 2**attempt
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 -- jitter, not a secret
        return await body()

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[DirectConnection]:
        try:
            async with self._pool.connection() as conn:
                yield conn
        except (PoolTimeout, PoolClosed) as error:
            raise DatabaseUnavailableError from error
        except psycopg.Error as error:
            if not is_lost(error):
                raise _refused(error) from error
            # The others in the pool most likely died too: test them before they are handed out.
            self._test_idle_connections()
            raise DatabaseUnavailableError from error

    def _test_idle_connections(self) -> None:
        if not self._pool.closed and (self._checking is None or self._checking.done()):
            self._checking = asyncio.create_task(self._check_pool())

    async def _check_pool(self) -> None:
        try:
            await self._pool.check()
        except (psycopg.Error, PoolTimeout, PoolClosed) as error:
            _log.info("pool_check_failed", cause=type(error).__name__)


async def _check(conn: DirectConnection) -> None:
    # On an idle connection a server sends nothing, unless it closes it.
    at_rest = select.poll()
    at_rest.register(conn.fileno(), select.POLLIN)
    if at_rest.poll(0):
        await AsyncConnectionPool.check_connection(conn)


def connection_options(schema: str, statement_timeout_seconds: float, application_name: str) -> dict[str, Any]:
    """Arguments of a connection that sees one schema alone.

    Args:
        schema: The schema.
        statement_timeout_seconds: How long one statement may take; 0 for no limit.
        application_name: What the server's own views call the connection.
    """
    return {
        "options": f"-c search_path={schema} -c statement_timeout={int(statement_timeout_seconds * 1000)} "
        # A client that died or stands still in the middle of a transaction must not keep its locks.
        f"-c idle_in_transaction_session_timeout={_STANDSTILL_MS} -c timezone=UTC "
        # Nor may one whose machine is gone keep its session: by default the server waits two hours, or fifteen minutes
        # where an answer is on its way.
        "-c tcp_keepalives_idle=15 -c tcp_keepalives_interval=5 -c tcp_keepalives_count=3 -c tcp_user_timeout=8000",
        "application_name": application_name,
        "autocommit": False,
        "prepare_threshold": 2,
        "connect_timeout": 5,
        "keepalives_idle": 15,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 20000,
    }


async def migrate(dsn: str, schema: str, script_package: str) -> None:
    """Bring a schema up to date; create it where it is missing.

    Several processes may do so at once: one works, the others wait for it. A process of its own does the work, so that
    no service keeps SQLAlchemy and Alembic in memory for the rest of its life. A schema at a revision that this version
    does not know was migrated by a newer one, which leaves it usable to the version before: it stays as it is.

    Args:
        dsn: `postgresql://` address.
        schema: The service's schema.
        script_package: Package with `env.py` and `versions/`, e.g. `services.tasks.migrations`.

    Raises:
        DatabaseUnavailableError: The server did not answer.
        MeshError: `INTERNAL` where a migration failed; its trace is in the log.
    """
    scripts = revisions.folder(script_package)
    head, found = revisions.head(scripts), await _revision(dsn, schema)
    if head is not None and found == head:
        return
    if found is not None and found not in revisions.known(scripts):
        _log.warning("schema_is_newer", schema=schema, revision=found)
        return
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "meshkit.migration",
        schema,
        script_package,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    # The address holds a password, so it goes neither into the arguments nor into the environment.
    output, _ = await process.communicate(dsn.encode())
    if process.returncode:
        _log.error("migration_failed", schema=schema, output=output.decode(errors="replace")[-8000:])
        raise MeshError(ErrorKind.INTERNAL, f"The schema {schema} could not be migrated", reason="MIGRATION_FAILED")


async def _revision(dsn: str, schema: str) -> str | None:
    try:
        async with await psycopg.AsyncConnection.connect(dsn, autocommit=True, connect_timeout=5) as conn:
            table = sql.Identifier(schema, "alembic_version")
            cursor = await conn.execute(sql.SQL("SELECT version_num FROM {}").format(table))
            row = await cursor.fetchone()
            return str(row[0]) if row else None
    except (pg_errors.UndefinedTable, pg_errors.InvalidSchemaName):
        return None
    except psycopg.OperationalError:
        raise DatabaseUnavailableError from None


def is_lost(error: psycopg.Error) -> bool:
    """Whether an error means that the connection is gone, and with it what was not committed."""
    state = error.sqlstate
    if state is None:
        return isinstance(error, psycopg.OperationalError)
    return state.startswith("08") or state in _LOST_STATES


def _refused(error: psycopg.Error) -> Exception:
    """Return what an error means that left the connection alive: itself, unless the server has no room to work."""
    state = error.sqlstate or ""
    if not state.startswith(_NO_ROOM_CLASS) and state not in _NO_ROOM_STATES:
        return error
    ident = secrets.token_hex(8)
    _log.error("database_has_no_room", sqlstate=state, error_id=ident)
    return no_room(ident)
