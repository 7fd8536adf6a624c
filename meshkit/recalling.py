"""Calls that a server ends before their time, so that their callers go on at another replica."""

from __future__ import annotations

import asyncio
from typing import Any

from meshkit.errors import MeshError, unavailable
from meshkit.interceptors import Call, Interceptor


class Followers:
    """Streams that follow something: they would keep a server that stops waiting for as long as it may."""

    def __init__(self) -> None:
        self._streams: dict[Call, asyncio.Task[Any]] = {}
        self._stopping = False

    def dismiss(self) -> None:
        """End the streams, and refuse calls that still arrive; each is told why."""
        self._stopping = True
        for task in self._streams.values():
            task.cancel()

    def enter(self, call: Call) -> None:
        """Note a stream; refuse a call to a server that stops."""
        if self._stopping:
            raise self._refusal()
        task = asyncio.current_task() if call.method.follows else None
        if task is not None:
            self._streams[call] = task

    def leave(self, call: Call) -> None:
        """Forget a stream."""
        self._streams.pop(call, None)

    def failed(self, call: Call, error: BaseException) -> BaseException:
        """Tell the caller of a stream that was ended to come again."""
        ended = self._stopping and call.method.follows and isinstance(error, asyncio.CancelledError)
        return self._refusal() if ended else error

    @staticmethod
    def _refusal() -> MeshError:
        return unavailable("The service is stopping", reason="SERVICE_STOPPING")


class Stranded:
    """Calls of a server that may lose what each of them needs: they would wait for it until their callers give up."""

    def __init__(self) -> None:
        self._calls: dict[Call, asyncio.Task[Any]] = {}
        self._ended: set[Call] = set()

    def end(self) -> None:
        """End the calls in flight, so that their callers ask another replica; again, where one does not end by that."""
        for call, task in self._calls.items():
            self._ended.add(call)
            task.cancel()

    def enter(self, call: Call) -> None:
        """Note a call."""
        task = asyncio.current_task()
        if task is not None:
            self._calls[call] = task

    def leave(self, call: Call) -> None:
        """Forget a call."""
        self._calls.pop(call, None)
        self._ended.discard(call)

    def failed(self, call: Call, error: BaseException) -> BaseException:
        """Tell the caller of a call that was ended to come again; whether it was carried out is unknown."""
        if call in self._ended and isinstance(error, asyncio.CancelledError):
            return unavailable("The service is cut off from what it needs", reason="REPLICA_CUT_OFF")
        return error


def recalled(stranded: Stranded) -> Interceptor:
    """End calls that wait for what the server has lost."""
    return Interceptor(enter=stranded.enter, failed=stranded.failed, leave=stranded.leave)


def dismissed(followers: Followers) -> Interceptor:
    """End streams that follow something when the server stops."""
    return Interceptor(enter=followers.enter, failed=followers.failed, leave=followers.leave)
