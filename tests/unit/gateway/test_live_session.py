"""One client's conversation over a WebSocket, without a socket."""

import asyncio
import json
from typing import Any

from meshkit.bus import Bus
from meshkit.live.feed import LiveFeed
from meshkit.live.log import LiveMessage, LiveReader
from services.gateway.live.degradation import OperatorTokens
from services.gateway.live.messages import Subscribe, WantedTypes
from services.gateway.live.session import LiveSession, SessionContext


class Client:
    """What a client says and hears; one that is stuck takes nothing."""

    def __init__(self, *, stuck: bool = False) -> None:
        self.said: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.heard: list[dict[str, Any]] = []
        self.takes = asyncio.Event()
        if not stuck:
            self.takes.set()

    async def send(self, message: Any) -> None:
        await self.takes.wait()
        self.heard.append(dict(message))

    def say(self, **message: Any) -> None:
        self.said.put_nowait({"type": "websocket.receive", "text": json.dumps(message)})

    @property
    def texts(self) -> list[dict[str, Any]]:
        return [json.loads(one["text"]) for one in self.heard if one["type"] == "websocket.send"]


def feed_of(most: int) -> LiveFeed:
    feed = LiveFeed(Bus(""), heartbeat_seconds=60, most=most)
    feed.log.begin(0, 0)
    feed.log.ready.set()
    return feed


def keep(feed: LiveFeed, *sequences: int, type_: str = "job.created") -> None:
    for sequence in sequences:
        text = json.dumps({"type": type_, "data": {}, "sequence": sequence})
        feed.log.newest = sequence
        feed.log.keep("acme", LiveMessage(sequence, type_, "jobs", text))


async def _holds() -> None:
    return None


def session_of(feed: LiveFeed, client: Client) -> asyncio.Task[str]:
    context = SessionContext(feed, 300, asyncio.Event(), OperatorTokens())
    reader = LiveReader(feed.log, "acme")
    return asyncio.ensure_future(LiveSession(client.said.get, client.send, reader, _holds, context).run())


async def turns(count: int = 30) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_who_takes_too_little_is_let_go_and_its_neighbour_misses_nothing() -> None:
    feed = feed_of(most=100)
    stuck, well = Client(stuck=True), Client()
    ending, listening = session_of(feed, stuck), session_of(feed, well)
    await turns()
    for sequence in range(1, 401):
        keep(feed, sequence)
        await turns(5)
    assert [one["sequence"] for one in well.texts] == list(range(1, 401))
    assert len(feed.log.topic("acme").kept) == 100
    assert stuck.heard == []
    stuck.takes.set()
    assert await asyncio.wait_for(ending, 60) == "slow"
    assert stuck.heard[-1]["code"] == 1013
    assert not listening.done()
    listening.cancel()


async def test_a_client_that_asks_on_and_reads_nothing_is_not_listened_to() -> None:
    feed = feed_of(most=10)
    client = Client(stuck=True)
    session = session_of(feed, client)
    for _ in range(100):
        client.say(type="ping")
    await turns(300)
    # One answer is on its way, one waits for its place among those that wait.
    assert client.said.qsize() == 100 - 1 - 16 - 1
    session.cancel()


async def test_replayed_messages_come_before_the_answer_and_later_ones_after_it() -> None:
    feed = feed_of(most=100)
    keep(feed, 1, 2, 3)
    client = Client()
    session = session_of(feed, client)
    client.say(type="resync", data={"channel": "jobs", "last_sequence": 1})
    await turns()
    keep(feed, 4)
    await turns()
    replayed = [(one["sequence"], one.get("replay")) for one in client.texts if "data" in one]
    assert replayed == [(2, True), (3, True), (4, None)]
    assert [one["type"] for one in client.texts] == ["job.created", "job.created", "resync_ack", "job.created"]
    session.cancel()


async def test_who_leaves_ends_the_conversation() -> None:
    client = Client()
    session = session_of(feed_of(10), client)
    client.said.put_nowait({"type": "websocket.disconnect"})
    assert await asyncio.wait_for(session, 60) == "left"


def test_patterns_choose_types_and_the_first_takes_the_place_of_all() -> None:
    wanted = WantedTypes()
    assert wanted.has("job.created")
    wanted.change(Subscribe(["alert.*"], ends=False))
    assert (wanted.has("alert.created"), wanted.has("job.created")) == (True, False)
    wanted.change(Subscribe(["alert.created"], ends=True))
    assert (wanted.has("alert.created"), wanted.has("alert.dismissed")) == (False, True)
    wanted.change(Subscribe(["*"], ends=False))
    assert (wanted.has("alert.created"), wanted.has("job.created")) == (True, True)
    everything = WantedTypes()
    everything.change(Subscribe(["job.progress"], ends=True))
    assert (everything.has("job.progress"), everything.has("job.created")) == (False, True)
    everything.change(Subscribe(["*"], ends=True))
    assert everything.has("job.created") is False
