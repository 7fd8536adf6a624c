"""Transactions on libpq's pipeline mode: statements that need no answer of each other travel together.

psycopg's own asynchronous pipeline asks the event loop at each statement: a transaction of four costs 320 to 470 us of
processor there and some 60 here, which at a thousand small transactions a second decides what a service can carry. Only
what such transactions need is here: statements with parameters, prepared at their first use, and their rows. Values are
adapted by psycopg, so they are written and read as with its cursors.

A transaction may have settings of the server for itself (`LocalSettings`): they travel with BEGIN and end with the
transaction. Statements are prepared apart for each of these settings, because the server keeps the plan of a prepared
statement when a setting changes.
"""

from __future__ import annotations

import asyncio
import re
import select
import time
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import psycopg
from psycopg import errors as pg_errors
from psycopg import sql
from psycopg.adapt import PyFormat, Transformer
from psycopg.pq import ConnStatus, DiagnosticField, ExecStatus

if TYPE_CHECKING:
    from psycopg.pq.abc import PGconn, PGresult

_PLACEHOLDER = re.compile(rb"%(?:\((\w+)\))?([sbt%])")
_FORMATS = {b"s": PyFormat.AUTO, b"b": PyFormat.BINARY, b"t": PyFormat.TEXT}
# A service has a few dozen hot statements; of statements composed at run time the least used are closed.
_MOST_PREPARED = 200
_MAX_AGE_SECONDS = 3600.0
# Between two statements of a pipeline the server does not take its client for idle, so no other timeout would end the
# transaction of one that stands still. It covers waits for locks too, so it is longer than that of idle transactions:
# whoever waits for such a client is let through before its own time is over.
_HAS_TRANSACTION_TIMEOUT = 170_000
_END_STANDSTILL = "SET transaction_timeout = '7s'"
# A statement prepared for a table that has changed since fails for the rest of the connection's life.
STALE = (pg_errors.FeatureNotSupported, pg_errors.InvalidSqlStatementName)


class LocalSettings:
    """Settings of the server for single transactions, e.g. of its planner.

    Args:
        values: Values by the settings' names.
    """

    __slots__ = ("enter", "leave")

    def __init__(self, values: Mapping[str, str]) -> None:
        self.enter = _set_local(values)
        self.leave = _set_local(dict.fromkeys(values))


class _Statement(NamedTuple):
    """A query as libpq takes it: `$1` in place of `%s`, and what each place holds."""

    text: bytes
    names: tuple[str, ...] | None
    formats: tuple[PyFormat, ...]


class PendingRows:
    """The answer to a statement, which may still be on its way."""

    __slots__ = ("_pipeline", "_result")

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline
        self._result: PGresult | None = None

    async def fetchall(self) -> list[Any]:
        """All rows, as tuples.

        Raises:
            psycopg.Error: this statement or one before it failed.
        """
        return self._pipeline.load(await self._arrived())

    async def fetchone(self) -> Any | None:
        """Return the first row, if there is one.

        Raises:
            psycopg.Error: this statement or one before it failed.
        """
        rows = await self.fetchall()
        return rows[0] if rows else None

    @property
    def settled(self) -> bool:
        """Whether the statement succeeded."""
        return self._result is not None

    async def count(self) -> int:
        """How many rows were changed or found.

        Raises:
            psycopg.Error: this statement or one before it failed.
        """
        return (await self._arrived()).command_tuples or 0

    def settle(self, result: PGresult) -> None:
        """Take what the server answered."""
        self._result = result

    async def _arrived(self) -> PGresult:
        if self._result is None:
            await self._pipeline.arrive(self)
        assert self._result is not None
        return self._result


# Of a prepared statement: the settings in force, its text, and the types of its values.
_Key = tuple[LocalSettings | None, bytes, tuple[int, ...]]


class _Prepared(NamedTuple):
    """The server was asked to prepare a statement, or to close one."""

    key: _Key | None


class _Sync:
    """A sync: the end of what is committed or rolled back together."""


_SYNC = _Sync()


class Pipeline:
    """One connection; carries one transaction after the other.

    Args:
        connection: A connection in autocommit that nobody else uses.
    """

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._pgconn: PGconn = connection.pgconn
        self._pgconn.nonblocking = 1
        self._pgconn.enter_pipeline_mode()
        self._loop = asyncio.get_running_loop()
        self._socket = self._pgconn.socket
        self._more = select.poll()
        self._more.register(self._socket, select.POLLIN)
        # Once, for the connection's life: to register anew for each answer costs more than to read it.
        self._loop.add_reader(self._socket, self._read)
        self._watched = True
        self._awaited: asyncio.Future[None] | None = None
        self._transformer = Transformer(connection)
        self._pending: deque[PendingRows | _Prepared | _Sync] = deque()
        self._asked = 0  # of the pending, how many the server was told to answer at once
        self._names: OrderedDict[_Key, bytes] = OrderedDict()
        self._numbers = 0
        self._failure: psycopg.Error | None = None
        self._open = False
        self._settings: LocalSettings | None = None
        self._born = time.monotonic()

    @property
    def usable(self) -> bool:
        """Whether another transaction can begin."""
        return self._pgconn.status == ConnStatus.OK and not self._open

    @property
    def aged(self) -> bool:
        """Whether it has lived for so long that another takes its place: a backend's memory grows with its age."""
        return time.monotonic() - self._born > _MAX_AGE_SECONDS

    async def close(self) -> None:
        """Close the connection; what it did not commit is undone by the server."""
        self._unwatch()
        await self._connection.close()

    async def execute(
        self, query: str | bytes, params: Sequence[Any] | Mapping[str, Any] | None = None, *, binary: bool = False
    ) -> PendingRows:
        """Add a statement; it is sent with the next one whose rows are fetched, or with the commit.

        Args:
            query: The statement, with psycopg's placeholders (`%s`, `%b`, `%(name)s`; `%%` for a percent sign).
            params: Values of the placeholders.
            binary: Whether rows come in binary.
        """
        return self._add(query, params, binary=binary)

    @asynccontextmanager
    async def transaction(
        self, *, durable: bool = True, settings: LocalSettings | None = None
    ) -> AsyncIterator[Pipeline]:
        """Commit at the end of the block, roll back on an exception.

        A block that is cancelled leaves the connection unusable, so that it is thrown away.

        Args:
            durable: Whether the commit waits for the disk.
            settings: Settings of the server for this transaction alone.

        Raises:
            psycopg.Error: A statement failed.
        """
        self._failure = None
        self._open = True
        self._settings = None
        self._add("BEGIN")
        if settings is not None:
            self._add(settings.enter)
            self._settings = settings
        if not durable:
            self._add("SET LOCAL synchronous_commit TO off")
        try:
            yield self
            if self._failure is not None:
                raise self._failure
            self._settings = None
            self._add("COMMIT")
            await self._synchronise()
            if self._failure is not None:
                raise self._failure
            self._open = False
        except Exception:
            await self._roll_back()
            raise

    @asynccontextmanager
    async def server_settings(self) -> AsyncIterator[Pipeline]:
        """Run the statements of the block with the server's own settings, whatever the transaction's are."""
        settings, self._settings = self._settings, None
        if settings is not None:
            self._add(settings.leave)
        yield self
        if settings is not None:
            self._add(settings.enter)
            self._settings = settings

    def load(self, result: PGresult) -> list[Any]:
        """Rows of a result, as tuples."""
        self._transformer.set_pgresult(result)
        return self._transformer.load_rows(0, result.ntuples, tuple)

    async def arrive(self, rows: PendingRows) -> None:
        """Wait until a statement is answered."""
        if self._failure is not None:
            raise self._failure
        if self._asked < len(self._pending):
            self._pgconn.send_flush_request()
            self._asked = len(self._pending)
            await self._flush()
        while True:
            item = await self._take()
            if self._failure is not None:
                raise self._failure
            if item is rows:
                return

    def _add(
        self, query: str | bytes, params: Sequence[Any] | Mapping[str, Any] | None = None, *, binary: bool = False
    ) -> PendingRows:
        statement = _parse(query)
        values: Sequence[Any]
        if params is None:
            values = ()
        elif isinstance(params, Mapping):
            values = [params[name] for name in statement.names or ()]
        else:
            values = params
        if len(values) != len(statement.formats):
            message = f"the query has {len(statement.formats)} placeholders, {len(values)} values were passed"
            raise psycopg.ProgrammingError(message)
        transformer = self._transformer
        dumped = transformer.dump_sequence(values, statement.formats) if values else []
        types, formats = (transformer.types or (), transformer.formats) if values else ((), None)
        name = self._name(statement.text, types)
        self._pgconn.send_query_prepared(name, dumped, formats, int(binary))
        rows = PendingRows(self)
        self._pending.append(rows)
        return rows

    def _name(self, text: bytes, types: tuple[int, ...]) -> bytes:
        key = (self._settings, text, types)
        name = self._names.get(key)
        if name is not None:
            self._names.move_to_end(key)
            return name
        if len(self._names) >= _MOST_PREPARED:
            self._pgconn.send_close_prepared(self._names.popitem(last=False)[1])
            self._pending.append(_Prepared(None))
        self._numbers += 1
        name = self._names[key] = b"pipeline_%d" % self._numbers
        self._pgconn.send_prepare(name, text, types)
        self._pending.append(_Prepared(key))
        return name

    async def _synchronise(self) -> None:
        """Send the sync, and take all answers."""
        self._synchronise_next()
        self._asked = len(self._pending)
        await self._flush()
        while self._pending:
            await self._take()

    def _synchronise_next(self) -> None:
        self._pgconn.pipeline_sync()
        self._pending.append(_SYNC)

    async def _roll_back(self) -> None:
        self._settings = None
        try:
            # After a failure the server skips everything up to the next sync.
            self._synchronise_next()
            rolled_back = self._add("ROLLBACK")
            await self._synchronise()
        except psycopg.Error:
            return
        self._open = not rolled_back.settled or isinstance(self._failure, STALE)

    async def _take(self) -> PendingRows | _Prepared | _Sync:
        """Take the answer to the oldest statement that waits for one; a failure is noted."""
        result = await self._result()
        item = self._pending[0]
        if result is None:
            raise psycopg.OperationalError("the connection to the server was lost")
        if item is not _SYNC:
            await self._result()  # each answer but that to a sync ends with nothing
        self._pending.popleft()
        self._asked = max(0, self._asked - 1)
        if result.status in (ExecStatus.FATAL_ERROR, ExecStatus.PIPELINE_ABORTED):
            if isinstance(item, _Prepared) and item.key is not None:
                self._names.pop(item.key, None)
            if self._failure is None:
                self._failure = self._error(result)
        elif isinstance(item, PendingRows):
            item.settle(result)
        return item

    def _error(self, result: PGresult) -> psycopg.Error:
        if self._pgconn.status != ConnStatus.OK and not result.error_field(DiagnosticField.SQLSTATE):
            # libpq's own message: the server closed the connection without one.
            return psycopg.OperationalError(result.get_error_message())
        return pg_errors.error_from_result(result)

    async def _result(self) -> PGresult | None:
        while self._pgconn.is_busy() and self._pgconn.status == ConnStatus.OK:
            await self._answer()
        return self._pgconn.get_result()

    async def _flush(self) -> None:
        while self._pgconn.flush():
            # Read what the server answers meanwhile, or both would wait for each other without end.
            self._loop.add_writer(self._socket, self._wake)
            try:
                await self._answer()
            finally:
                if self._watched:
                    self._loop.remove_writer(self._socket)

    async def _answer(self) -> None:
        """Wait until the next answer is here, or, while something is to be sent, the socket is writable."""
        self._awaited = self._loop.create_future()
        try:
            await self._awaited
        finally:
            self._awaited = None

    def _read(self) -> None:
        try:
            self._pgconn.consume_input()
            # A reset wakes a reader once and never again under uvloop, and may come together with the last answer.
            while self._more.poll(0):
                self._pgconn.consume_input()
        except psycopg.OperationalError:
            # The server is gone. A caller that waits learns it from the next result, the pool from `usable`.
            self._unwatch()
            self._wake()
        else:
            if self._awaited is not None and not self._pgconn.is_busy():
                self._wake()

    def _unwatch(self) -> None:
        # Once: libpq closes the socket of a server that is gone, and the next connection may have its number.
        if self._watched:
            self._watched = False
            self._loop.remove_reader(self._socket)
            self._loop.remove_writer(self._socket)

    def _wake(self) -> None:
        if self._awaited is not None and not self._awaited.done():
            self._awaited.set_result(None)


async def connect(dsn: str, options: Mapping[str, Any]) -> Pipeline:
    """Open a connection.

    Args:
        dsn: `postgresql://` address.
        options: Arguments of a connection.

    Raises:
        psycopg.OperationalError: The server did not answer.
    """
    options = {**options, "autocommit": True, "prepare_threshold": None}
    connection = await psycopg.AsyncConnection.connect(dsn, **options)
    try:
        if connection.info.server_version >= _HAS_TRANSACTION_TIMEOUT:
            await connection.execute(_END_STANDSTILL)
        return Pipeline(connection)
    except BaseException:
        # Also of a caller that is cancelled meanwhile: nobody else knows of the connection.
        await connection.close()
        raise


def _set_local(values: Mapping[str, str | None]) -> bytes:
    # One statement for all of them, 6 us in a transaction of 130; NULL stands for the server's own value.
    settings = [sql.SQL("set_config({}, {}, true)").format(sql.Literal(name), value) for name, value in values.items()]
    return sql.SQL("SELECT {}").format(sql.SQL(", ").join(settings)).as_bytes()


@lru_cache(maxsize=1024)
def _parse(query: str | bytes) -> _Statement:
    text = query.encode() if isinstance(query, str) else query
    parts: list[bytes] = []
    names: list[str] = []
    places: dict[str, int] = {}
    formats: list[PyFormat] = []
    end = 0
    for found in _PLACEHOLDER.finditer(text):
        parts.append(text[end : found.start()])
        end = found.end()
        name, kind = found.groups()
        if kind == b"%":
            parts.append(b"%")
            continue
        if name is None:
            number = len(formats)
            formats.append(_FORMATS[kind])
        else:
            spelled = name.decode()
            if spelled not in places:
                places[spelled] = len(formats)
                names.append(spelled)
                formats.append(_FORMATS[kind])
            number = places[spelled]
        parts.append(b"$%d" % (number + 1))
    parts.append(text[end:])
    return _Statement(b"".join(parts), tuple(names) if names else None, tuple(formats))
