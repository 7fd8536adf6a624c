"""The newest messages of every tenant, and the places of those who read them."""

import pytest

from meshkit.live.log import FellBehindError, LiveLog, LiveMessage, LiveReader


def message(sequence: int, type_: str = "job.created") -> LiveMessage:
    return LiveMessage(sequence, type_, "jobs", "{}")


def log_of(most: int = 10, lost: int = 0) -> LiveLog:
    log = LiveLog(most)
    log.begin(lost, lost)
    return log


def keep(log: LiveLog, tenant: str, *sequences: int) -> None:
    for sequence in sequences:
        log.newest = sequence
        log.keep(tenant, message(sequence))


def read(reader: LiveReader) -> list[int]:
    found: list[int] = []
    while batch := reader.take():
        found += [one.sequence for one in batch]
    return found


def test_a_reader_gets_what_comes_after_it_of_its_own_tenant() -> None:
    log = log_of()
    keep(log, "a", 1)
    reader = LiveReader(log, "a")
    keep(log, "b", 2)
    keep(log, "a", 3, 4)
    assert read(reader) == [3, 4]
    assert read(reader) == []
    assert reader.wake.is_set()


def test_no_more_than_the_bound_is_kept_however_many_read() -> None:
    log = log_of(most=10)
    readers = [LiveReader(log, "a") for _ in range(50)]
    keep(log, "a", *range(1, 1001))
    assert len(log.topic("a").kept) == 10
    assert readers[0].since(0).messages[0].sequence == 991
    for _ in range(1000):
        log.pass_on("a", message(1000, "job.progress"))
    assert len(log.topic("a").passing) == 256


def test_who_is_slower_than_the_bound_falls_behind_and_the_others_do_not() -> None:
    log = log_of(most=10)
    slow, fast = LiveReader(log, "a"), LiveReader(log, "a")
    for sequence in range(1, 30):
        keep(log, "a", sequence)
        assert read(fast) == [sequence]
    with pytest.raises(FellBehindError):
        slow.take()


def test_another_tenants_flood_takes_the_oldest_and_says_so() -> None:
    log = log_of(most=10)
    keep(log, "quiet", 1, 2)
    reader = LiveReader(log, "quiet")
    assert reader.since(1).too_old is False
    keep(log, "loud", *range(3, 30))
    asked = reader.since(1)
    assert (asked.too_old, asked.oldest, asked.newest, list(asked.messages)) == (True, 3, 29, [])
    assert reader.since(2).too_old is False
    assert read(reader) == []


def test_what_was_missed_is_found_by_its_number() -> None:
    log = log_of(lost=100)
    keep(log, "a", 101, 105, 109)
    reader = LiveReader(log, "a")
    assert [one.sequence for one in reader.since(101).messages] == [105, 109]
    assert [one.sequence for one in reader.since(104).messages] == [105, 109]
    assert reader.since(109).messages == []
    assert reader.since(99).too_old is True
    assert reader.go_back(104).too_old is False
    assert read(reader) == [105, 109]


def test_what_is_older_than_the_log_is_no_news_to_who_came_before_it_was_read() -> None:
    log = LiveLog()
    early = LiveReader(log, "a")
    log.begin(0, 3, first=True)
    during = LiveReader(log, "a")
    keep(log, "a", 1, 2, 3, 4)
    assert read(early) == read(during) == [4]
    assert [one.sequence for one in early.since(1).messages] == [2, 3, 4]


def test_a_log_of_a_new_stream_claims_nothing_of_the_one_before() -> None:
    log = log_of(lost=10)
    keep(log, "a", 11)
    reader = LiveReader(log, "a")
    log.begin(99, 100)
    keep(log, "a", 100, 101)
    assert read(reader) == [100, 101]
    asked = reader.since(11)
    assert (asked.too_old, asked.oldest) == (True, 100)


def test_a_topic_that_has_nothing_and_nobody_is_forgotten_but_not_what_it_lost() -> None:
    log = log_of(most=1)
    reader = LiveReader(log, "a")
    keep(log, "a", 1, 2)
    keep(log, "b", 3)
    reader.close()
    assert LiveReader(log, "a").since(1).too_old is True
    assert LiveReader(log, "a").since(2).too_old is False


def test_passing_messages_come_after_kept_ones_and_operators_hear_of_the_mesh() -> None:
    log = log_of()
    reader = LiveReader(log, "a", "*")
    log.pass_on("a", message(1, "job.progress"))
    log.pass_on("*", message(1, "system.status"))
    log.pass_on("b", message(1, "job.progress"))
    keep(log, "a", 1)
    assert [one.type for one in reader.take()] == ["job.created"]
    assert [one.type for one in reader.take()] == ["job.progress", "system.status"]
    log.pass_to_all(LiveMessage(1, "ping", "", "{}"), but="*")
    assert [one.type for one in reader.take()] == ["ping"]
