"""Clients of the object store, and what its refusals mean; only `meshkit.objects` uses them.

`minio` is loaded with the first client: the import takes half a second, which a process does not need at its start.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from meshkit.errors import MeshError, conflict, invalid, not_found, unavailable
from meshkit.logging import get_logger

_log = get_logger(__name__)

CHANGED = "OBJECT_CHANGED"
"""Reason of the error: the object is not what a write on condition expected."""

_MISSING = frozenset({"NoSuchKey", "NoSuchObject", "NotFound", "NoSuchVersion"})
_KEYS_REFUSED = frozenset({"AccessDenied", "SignatureDoesNotMatch", "InvalidAccessKeyId"})
_TOO_LONG = frozenset({"KeyTooLongError", "KeyTooLong"})
# The second: another write to the object was under way.
_CHANGED = frozenset({"PreconditionFailed", "ConditionalRequestConflict"})


class S3Clients:
    """The clients of one store.

    Args:
        endpoint: `host:port`.
        access_key: Access key.
        secret_key: Secret key.
        secure: Whether to use TLS.
        region: The region that requests are signed for.
        threads: Threads that use a client at once.
        read_seconds: How long the store may be silent.
        repeat_seconds: A call that has taken longer is not repeated: a store whose disk is full tries itself for long
            before it refuses.
    """

    def __init__(
        self,
        endpoint: str,
        access_key: str,
        secret_key: str,
        *,
        secure: bool,
        region: str,
        threads: int,
        read_seconds: float = 30.0,
        repeat_seconds: float = 5.0,
    ) -> None:
        self._endpoint = endpoint
        self._keys = {"access_key": access_key, "secret_key": secret_key}
        self._options = {"secure": secure, "region": region}
        self._threads = threads
        self._read_seconds = read_seconds
        self._repeat_seconds = repeat_seconds
        self._client: Any = None
        self._lock = threading.Lock()

    def usual(self) -> Any:
        """Return the client that repeats what failed on the way."""
        from minio import Minio  # noqa: PLC0415 -- see the module's docstring

        with self._lock:
            if self._client is None:
                self._client = self._make(Minio, self._pool(total=3, status_forcelist=(500, 502, 503, 504)))
            return self._client

    def on_condition(self, expected: str) -> Any:
        """Return a client whose writes hold only where the object is as expected.

        It repeats nothing that may have reached the store: a repeated write would find its own object.

        Args:
            expected: ETag that the object must have, without quotes; empty where there must be no object.
        """
        from minio import Minio  # noqa: PLC0415 -- see the module's docstring

        condition = {"If-Match": f'"{expected}"'} if expected else {"If-None-Match": "*"}

        class OnCondition(Minio):
            def _execute(self, method: str, *args: Any, **options: Any) -> Any:
                query = options.get("query_params") or {}
                # Not the parts of an upload, nor its beginning: the object comes to be when it is completed.
                if (method in {"PUT", "DELETE"} and not query) or (method == "POST" and "uploadId" in query):
                    options["headers"] = {**(options.get("headers") or {}), **condition}
                return super()._execute(method, *args, **options)

        # A pool of its own: a client closes its pool when it goes.
        return self._make(OnCondition, self._pool(total=None, connect=3, read=0, status=0, other=0))

    def _make(self, kind: Any, pool: Any) -> Any:
        return kind(self._endpoint, **self._keys, **self._options, http_client=pool)

    def _pool(self, **retries: Any) -> Any:
        import urllib3  # noqa: PLC0415 -- see the module's docstring

        repeat_seconds = self._repeat_seconds

        class Retry(urllib3.Retry):
            until = 0.0

            def new(self, **parts: Any) -> Any:
                made = super().new(**parts)
                made.until = self.until
                return made

            def increment(
                self,
                method: Any = None,
                url: Any = None,
                response: Any = None,
                error: Any = None,
                *rest: Any,
                **more: Any,
            ) -> Any:
                # A store that is silent is so again: its caller is told after one wait.
                if isinstance(error, urllib3.exceptions.ReadTimeoutError):
                    raise error
                if time.monotonic() > self.until:
                    if response is not None:
                        response.drain_conn()
                    raise error or urllib3.exceptions.HTTPError("it has taken too long to be repeated")
                return super().increment(method, url, response, error, *rest, **more)

        class Pools(urllib3.PoolManager):
            def urlopen(self, method: str, url: str, *rest: Any, **more: Any) -> Any:
                fresh = Retry(**retries, backoff_factor=0.1)
                fresh.until = time.monotonic() + repeat_seconds
                return super().urlopen(method, url, *rest, **{"retries": fresh, **more})

        return Pools(
            maxsize=self._threads,
            block=False,
            timeout=urllib3.Timeout(connect=3, read=self._read_seconds),
        )


def translated(error: Exception, path: str) -> MeshError | None:
    """Return what an error of a client means to the caller; None where it is none of the store's.

    Args:
        error: What the client raised.
        path: Path of the object that was spoken of.
    """
    from minio.error import S3Error  # noqa: PLC0415 -- see the module's docstring
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 -- as above

    if isinstance(error, S3Error):
        return _refusal(str(error.code), path)
    # A local file that is not there or may not be read is the caller's.
    if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
        return None
    if isinstance(error, HTTPError | OSError):
        _log.warning("object_store_unreachable", cause=type(error).__name__)
        return unavailable("The object store is not reachable", reason="OBJECTS_UNAVAILABLE")
    return None


def _refusal(code: str, path: str) -> MeshError:
    if code in _MISSING:
        return not_found("Object", path)
    if code in _CHANGED:
        return conflict("The object has changed meanwhile", CHANGED)
    if code in _TOO_LONG:
        return invalid("path", "is too long for the object store", "string_too_long")
    if code == "InvalidRange":
        return invalid("range", "lies outside of the object", "range")
    if code in _KEYS_REFUSED:
        _log.error("object_store_key_refused", code=code)
        # The mesh's own fault: the caller does not lack a right.
        return unavailable("The object store does not work right now", reason="OBJECTS_FORBIDDEN")
    _log.warning("object_store_failed", code=code)
    return unavailable("The object store does not work right now", reason="OBJECTS_UNAVAILABLE")
