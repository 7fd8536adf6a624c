import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, cast

import pytest
from nats import errors as nats_errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from meshkit.publishing import Outgoing, Publisher, PublishOutcome

STORED = b'{"stream":"EVENTS","seq":7}'
REPEATED = b'{"stream":"EVENTS","seq":7,"duplicate": true}'
ERROR = json.dumps(
    {"error": {"code": 400, "err_code": 10060, "description": "not the stream"}, "stream": "E", "seq": 0}
)


class FakeClient:
    """Answers each message by a rule: with data, with a status, with an exception, or not at all."""

    def __init__(self, rule: Callable[[str], bytes | str | Exception | None]) -> None:
        self.rule = rule
        self.max_payload = 1024 * 1024
        self.sent: list[tuple[str, str, dict[str, str]]] = []

    def new_inbox(self) -> str:
        return "_INBOX.me"

    async def subscribe(self, subject: str, cb: Callable[[Msg], Awaitable[None]]) -> None:
        assert subject == "_INBOX.me.*.*"
        self.heard = cb

    async def publish(self, subject: str, _payload: bytes, *, reply: str, headers: dict[str, str]) -> None:
        answer = self.rule(subject)
        if isinstance(answer, Exception):
            raise answer
        self.sent.append((subject, reply, headers))
        if answer is not None:
            await self.answer(reply, answer)

    async def answer(self, reply: str, answer: bytes | str) -> None:
        no_stream = {"Status": answer} if isinstance(answer, str) else None
        data = answer if isinstance(answer, bytes) else b""
        await self.heard(Msg(cast("Any", self), subject=reply, data=data, headers=no_stream))


async def publisher_of(client: FakeClient, timeout_seconds: float = 0.02) -> Publisher:
    publisher = Publisher(cast("Client", client), "EVENTS", timeout_seconds)
    await publisher.start()
    return publisher


def messages(*subjects: str, size: int = 1) -> Sequence[Outgoing]:
    return [Outgoing(subject, b"x" * size, {"a": "b"}) for subject in subjects]


async def test_each_message_gets_the_answer_that_was_given_to_it() -> None:
    answers: dict[str, bytes | str | Exception] = {
        "a": STORED,
        "b": REPEATED,
        "c": ERROR.encode(),
        "d": "503",
        "e": nats_errors.BadSubjectError(),
    }
    client = FakeClient(lambda subject: answers[subject])
    publisher = await publisher_of(client)
    assert await publisher.publish(messages("e", "d", "c", "b", "a")) == [
        PublishOutcome.REFUSED,
        PublishOutcome.NO_STREAM,
        PublishOutcome.REFUSED,
        PublishOutcome.STORED,
        PublishOutcome.STORED,
    ]
    assert [subject for subject, _, _ in client.sent] == ["d", "c", "b", "a"]
    assert {tuple(headers.items()) for _, _, headers in client.sent} == {
        (("a", "b"), ("Nats-Expected-Stream", "EVENTS"))
    }


async def test_nothing_to_publish_is_no_trouble() -> None:
    assert await (await publisher_of(FakeClient(lambda _: STORED))).publish([]) == []


async def test_silence_leaves_unknown_what_was_not_answered() -> None:
    publisher = await publisher_of(FakeClient(lambda subject: None if subject == "b" else STORED))
    assert await publisher.publish(messages("a", "b", "c")) == [
        PublishOutcome.STORED,
        PublishOutcome.NONE,
        PublishOutcome.STORED,
    ]


async def test_an_answer_that_comes_after_its_run_counts_for_no_other() -> None:
    client = FakeClient(lambda _: None)
    publisher = await publisher_of(client)
    assert await publisher.publish(messages("a")) == [PublishOutcome.NONE]
    late = client.sent[0][1]
    again = asyncio.create_task(publisher.publish(messages("a")))
    await asyncio.sleep(0)
    await client.answer(late, STORED)
    assert await again == [PublishOutcome.NONE]


async def test_a_second_answer_changes_nothing() -> None:
    client = FakeClient(lambda _: None)
    publisher = await publisher_of(client)
    publishing = asyncio.create_task(publisher.publish(messages("a", "b")))
    await asyncio.sleep(0)
    for answer in (STORED, ERROR.encode(), STORED):
        await client.answer(client.sent[0][1], answer)
    assert await publishing == [PublishOutcome.STORED, PublishOutcome.NONE]


async def test_answers_that_trickle_in_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    client, waits = FakeClient(lambda _: None), list[float]()
    publisher = await publisher_of(client, timeout_seconds=1.0)

    async def wait(waited: Sequence[asyncio.Future[None]], **limit: float) -> None:
        """One answer comes within each wait, and each wait lasts to its limit."""
        await client.answer(client.sent[len(waits)][1], STORED)
        waits.append(limit["timeout"])

    monkeypatch.setattr("meshkit.publishing.asyncio.wait", wait)
    assert await publisher.publish(messages("a", "b", "c")) == [PublishOutcome.STORED] * 3
    assert waits == [1.0] * 3, "later than the limit in all, never later than it after another"


async def test_many_bytes_go_in_parts_and_the_rest_is_kept_from_a_silent_server() -> None:
    client = FakeClient(lambda subject: None if subject == "b" else STORED)
    client.max_payload = 8 * 1024 * 1024
    publisher = await publisher_of(client)
    part = 4 * 1024 * 1024
    assert await publisher.publish(messages("a", "c", "a", size=part)) == [PublishOutcome.STORED] * 3
    assert await publisher.publish(messages("a", "b", "c", size=part)) == [
        PublishOutcome.STORED,
        PublishOutcome.NONE,
        PublishOutcome.NONE,
    ]
    assert [subject for subject, _, _ in client.sent] == ["a", "c", "a", "a", "b"]


@pytest.mark.parametrize(("over", "answer"), [(0, PublishOutcome.STORED), (1, PublishOutcome.REFUSED)])
async def test_headers_count_for_the_limit_of_a_message(over: int, answer: PublishOutcome) -> None:
    client = FakeClient(lambda _: STORED)
    wire = len(b"NATS/1.0\r\na: b\r\nNats-Expected-Stream: EVENTS\r\n\r\n")
    publisher = await publisher_of(client)
    assert await publisher.publish(messages("a", size=client.max_payload - wire + over)) == [answer]
