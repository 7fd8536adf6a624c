"""The newest messages of every tenant, and the places of those who read them.

There is one copy of a message, however many read it, and no queue for each reader: a reader has a place in its tenant's
topic. One that is so slow that its place has been given up has to go, and memory stays within one bound.

Messages that are kept bear the number that their event has in the stream: it rises, with gaps, because all tenants
share the stream, and it outlives this process. Passing ones (progress, pings) bear the number of the newest kept one; a
slow reader misses some of them.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import attrgetter

MOST_KEPT = 20_000
_MOST_PASSING = 256
_BATCH = 64


class FellBehindError(Exception):
    """A reader is so slow that messages it has not read are no longer kept."""


@dataclass(slots=True)
class LiveMessage:
    """A message to listeners.

    Attributes:
        sequence: Its number; of a passing one, the number of the newest kept one.
        type: Its type.
        channel: Its channel; empty for what belongs to no channel.
        content: The whole of it as JSON, or what makes that: nobody listens to most messages of a busy mesh.
        job: Job that it tells of; empty for none.
    """

    sequence: int
    type: str
    channel: str
    content: str | Callable[[], str]
    job: str = ""

    @property
    def text(self) -> str:
        """The whole of it as JSON, made once."""
        if not isinstance(self.content, str):
            self.content = self.content()
        return self.content


@dataclass(frozen=True, slots=True)
class Replay:
    """What a listener missed.

    Attributes:
        messages: The messages.
        newest: Number of the newest message that there is.
        oldest: Number from which on nothing is missing.
        too_old: Whether some may be missing before that.
    """

    messages: Sequence[LiveMessage]
    newest: int
    oldest: int
    too_old: bool


class LiveTopic:
    """The messages of one tenant, or of the operators.

    Args:
        lost: Number up to which messages are not there.
    """

    def __init__(self, lost: int) -> None:
        self.lost = lost
        self.kept: deque[LiveMessage] = deque()
        self.passing: deque[LiveMessage] = deque(maxlen=_MOST_PASSING)
        # How many there were before the first of each.
        self.kept_before = 0
        self.passed = 0
        self.readers: set[LiveReader] = set()

    @property
    def kept_end(self) -> int:
        """Place behind the newest kept message."""
        return self.kept_before + len(self.kept)

    def keep(self, message: LiveMessage) -> None:
        """Add a message that is kept."""
        self.kept.append(message)
        self._wake()

    def pass_on(self, message: LiveMessage) -> None:
        """Add a message that is not."""
        self.passing.append(message)
        self.passed += 1
        self._wake()

    def drop_oldest(self) -> None:
        """Give up the oldest kept message."""
        self.lost = self.kept.popleft().sequence
        self.kept_before += 1

    def _wake(self) -> None:
        for reader in self.readers:
            reader.wake.set()


class LiveLog:
    """The newest messages of all tenants.

    Args:
        most: How many are kept.
    """

    def __init__(self, most: int = MOST_KEPT) -> None:
        self._most = most
        self._topics: dict[str, LiveTopic] = {}
        # By age, the topics that the kept messages stand in.
        self._order: deque[LiveTopic] = deque()
        # Number up to which messages of unknown topics are not there.
        self._lost = 0
        self.newest = 0
        # Number of the newest message when the reading began: what is older is no news to those who come later.
        self.began_at = 0
        # Set once everything that the stream holds stands here.
        self.ready = asyncio.Event()

    def begin(self, lost: int, newest: int, *, first: bool = False) -> None:
        """Forget all: what follows is what comes after a number.

        Args:
            lost: The number.
            newest: Number of the newest message that there is.
            first: Whether those who read already have come for what is newer than that.
        """
        self.ready.clear()
        self.began_at = newest
        for topic in self._topics.values():
            for reader in topic.readers if first else ():
                reader.after = newest
            topic.kept_before = topic.kept_end
            topic.kept.clear()
            topic.lost = lost
        self._order.clear()
        self._lost = lost
        self.newest = newest

    def keep(self, name: str, message: LiveMessage) -> None:
        """Add a message that is kept."""
        topic = self.topic(name)
        self._order.append(topic)
        topic.keep(message)
        if len(self._order) > self._most:
            self._order.popleft().drop_oldest()

    def pass_on(self, name: str, message: LiveMessage) -> None:
        """Add a message that is not kept, where somebody listens."""
        if (topic := self._topics.get(name)) is not None:
            topic.pass_on(message)

    def pass_to_all(self, message: LiveMessage, *, but: str) -> None:
        """Add a message that is not kept to every topic but one."""
        for name, topic in self._topics.items():
            if name != but and topic.readers:
                topic.pass_on(message)

    def listened_to(self, name: str) -> bool:
        """Tell whether somebody reads a topic."""
        topic = self._topics.get(name)
        return topic is not None and bool(topic.readers)

    def topic(self, name: str) -> LiveTopic:
        """Return a topic, new where there is none yet."""
        topic = self._topics.get(name)
        if topic is None:
            topic = self._topics[name] = LiveTopic(self._lost)
        return topic

    def leave(self, reader: LiveReader) -> None:
        """End a reader; forget topics that have nothing and nobody."""
        for topic in reader.topics:
            topic.readers.discard(reader)
        for name in [name for name, topic in self._topics.items() if not topic.readers and not topic.kept]:
            self._lost = max(self._lost, self._topics.pop(name).lost)


class LiveReader:
    """One listener's place in its tenant's topic, and in that of the operators.

    Args:
        log: The log.
        own: Name of the topic whose kept messages it reads.
        also: Name of a topic whose passing messages it reads besides; none for no other.
    """

    def __init__(self, log: LiveLog, own: str, also: str = "") -> None:
        self._log = log
        self.topics = [log.topic(name) for name in (own, also) if name]
        self.wake = asyncio.Event()
        # Kept messages up to this number are none of its.
        self.after = log.began_at
        self._own = self.topics[0]
        self._place = self._own.kept_end
        self._passed = [topic.passed for topic in self.topics]
        for topic in self.topics:
            topic.readers.add(self)

    def close(self) -> None:
        """Stop reading."""
        self._log.leave(self)

    def take(self) -> list[LiveMessage]:
        """Return the next messages, few at a time; none where there are none yet.

        Raises:
            FellBehindError: Some are no longer there.
        """
        own = self._own
        at = self._place - own.kept_before
        if at < 0:
            raise FellBehindError
        taken = [own.kept[index] for index in range(at, min(at + _BATCH, len(own.kept)))]
        self._place += len(taken)
        if taken:
            return [one for one in taken if one.sequence > self.after] or self.take()
        for index, topic in enumerate(self.topics):
            unread = min(topic.passed - self._passed[index], len(topic.passing))
            self._passed[index] = topic.passed
            taken += [topic.passing[len(topic.passing) - unread + one] for one in range(unread)]
        return taken

    def since(self, sequence: int) -> Replay:
        """Return the kept messages after a number."""
        kept = self._own.kept
        first = bisect_right(kept, sequence, key=attrgetter("sequence"))
        lost = self._own.lost
        missed = [kept[index] for index in range(first, len(kept))]
        return Replay(missed, max(self._log.newest, lost), lost + 1, too_old=sequence < lost)

    def go_back(self, sequence: int) -> Replay:
        """Read on after a number; return what that leaves out, without the messages."""
        kept = self._own.kept
        self.after = min(self.after, sequence)
        self._place = self._own.kept_before + bisect_right(kept, sequence, key=attrgetter("sequence"))
        lost = self._own.lost
        return Replay((), max(self._log.newest, lost), lost + 1, too_old=sequence < lost)
