"""Publishing to JetStream in runs: all of a run is sent, then all of its acknowledgements are awaited together.

The client's own `publish` makes a token, a future and a timer for each message and wakes the caller for each answer,
which costs three times of what the message itself does. Here a run waits once. Each message is still acknowledged by
itself: it is known of every one whether the stream has it.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import NamedTuple

import orjson
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from meshkit.logging import get_logger

_log = get_logger(__name__)

# Half of what the client buffers: with more it would block in the middle of a run while NATS hangs.
_PART_BYTES = 4 * 1024 * 1024
_MAX_HEADER_BYTES = 0xFFFF  # JetStream's own limit
_EXPECTED_STREAM = "Nats-Expected-Stream"
_NO_RESPONDERS = "503"


class Outgoing(NamedTuple):
    """A message to publish.

    Attributes:
        subject: Subject within a stream's.
        payload: The message.
        headers: Its headers.
    """

    subject: str
    payload: bytes
    headers: Mapping[str, str]


class PublishOutcome(Enum):
    """What became of a message."""

    STORED = "stored"  # now, or before under the same id
    NO_STREAM = "no_stream"
    REFUSED = "refused"
    NONE = "none"  # whether the stream has it is unknown


class Publisher:
    """Publishes on one connection, across its reconnects.

    Args:
        client: The connection.
        stream: The stream that is to have the messages.
        timeout_seconds: How long to wait for an answer, counted from the answer before.
    """

    def __init__(self, client: Client, stream: str, timeout_seconds: float) -> None:
        self._client = client
        self._stream = stream
        self._timeout_seconds = timeout_seconds
        self._inbox = f"{client.new_inbox()}."
        self._numbers = itertools.count()
        self._runs: dict[str, _Run] = {}

    async def start(self) -> None:
        """Listen for answers; before anything is published."""
        await self._client.subscribe(f"{self._inbox}*.*", cb=self._answered)

    async def publish(self, messages: Sequence[Outgoing]) -> list[PublishOutcome]:
        """Publish messages in their order. One that is refused does not keep those behind it.

        Args:
            messages: The messages.

        Returns:
            An answer for each of them.
        """
        answers: list[PublishOutcome] = []
        for part in _parts(messages):
            of_part = await self._publish_part(part)
            answers += of_part
            if PublishOutcome.NONE in of_part:
                break  # to the rest NATS would be as silent
        return answers + [PublishOutcome.NONE] * (len(messages) - len(answers))

    async def _publish_part(self, messages: Sequence[Outgoing]) -> list[PublishOutcome]:
        # A number for each run: an answer that comes after its run was given up must not count for a later one.
        number = str(next(self._numbers))
        run = self._runs[number] = _Run(len(messages))
        try:
            for index, message in enumerate(messages):
                try:
                    await self._send(message, f"{self._inbox}{number}.{index}")
                except (nats_errors.Error, OSError) as error:
                    run.refuse(index, type(error).__name__)
            await run.wait(self._timeout_seconds)
        finally:
            del self._runs[number]
        if run.causes:
            _log.warning("messages_refused", count=run.answers.count(PublishOutcome.REFUSED), causes=sorted(run.causes))
        return run.answers

    async def _send(self, message: Outgoing, reply: str) -> None:
        headers = {**message.headers, _EXPECTED_STREAM: self._stream}
        room = self._client.max_payload - len(message.payload)
        # The client checks the payload alone. Beyond the limit the server closes the connection, and the run fails.
        if room < _MAX_HEADER_BYTES and room < _header_bytes(headers):
            raise nats_errors.MaxPayloadError
        await self._client.publish(message.subject, message.payload, reply=reply, headers=headers)

    async def _answered(self, message: Msg) -> None:
        number, _, index = message.subject[len(self._inbox) :].partition(".")
        run = self._runs.get(number)
        if run is None:
            return
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            run.answer(int(index), PublishOutcome.NO_STREAM)
            return
        acknowledgement = orjson.loads(message.data)
        if "error" in acknowledgement:
            run.refuse(int(index), str(acknowledgement["error"].get("description", "")))
        else:
            run.answer(int(index), PublishOutcome.STORED)


class _Run:
    """The answers to messages that were sent together."""

    def __init__(self, count: int) -> None:
        self.answers = [PublishOutcome.NONE] * count
        self.causes: set[str] = set()
        self._missing = count
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def answer(self, index: int, answer: PublishOutcome) -> None:
        # The server answers once; should it answer twice, the first answer counts.
        if self.answers[index] is not PublishOutcome.NONE:
            return
        self.answers[index] = answer
        self._missing -= 1
        if not self._missing:
            self._complete.set_result(None)

    def refuse(self, index: int, cause: str) -> None:
        self.causes.add(cause)
        self.answer(index, PublishOutcome.REFUSED)

    async def wait(self, timeout_seconds: float) -> None:
        """Wait until all have come, or none came for a while."""
        before = None
        while self._missing and self._missing != before:
            before = self._missing
            await asyncio.wait([self._complete], timeout=timeout_seconds)


def _parts(messages: Sequence[Outgoing]) -> Iterator[Sequence[Outgoing]]:
    begin = size = 0
    for index, message in enumerate(messages):
        size += len(message.payload)
        if size > _PART_BYTES and index > begin:
            yield messages[begin:index]
            begin, size = index, len(message.payload)
    if begin < len(messages):
        yield messages[begin:]


def _header_bytes(headers: Mapping[str, str]) -> int:
    lines = sum(len(f"{key}: {value}\r\n".encode()) for key, value in headers.items())
    return len(b"NATS/1.0\r\n\r\n") + lines
