import asyncio
import io
import json
import subprocess
import sys
import threading
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from meshkit import logging
from meshkit.logging import REDACTED, redact

JWT = "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"


@pytest.mark.parametrize(
    "key",
    ["token", "authorization", "Authorization", "password", "auth_secret", "s3_secret_key", "api_key", "x-api-key",
     "private_key", "cookie", "set-cookie", "dsn", "refresh_token", "tokens", "credentials", "X-Amz-Signature"],
)  # fmt: skip
def test_values_of_secret_keys_are_covered(key: Any) -> None:
    assert redact({key: "value"}) == {key: REDACTED}
    assert redact({"deep": [{key: ["value"]}]}) == {"deep": [{key: REDACTED}]}


@pytest.mark.parametrize("key", ["tokenizer", "max_tokens_length", "secretary", "monkey", "key", "path", "author"])
def test_other_keys_stay(key: Any) -> None:
    assert redact({key: "value"}) == {key: "value"}


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"Authorization: Bearer {JWT}", f"Authorization: Bearer {REDACTED}"),
        (f"got {JWT} from", f"got {REDACTED} from"),
        ("bearer abcdef0123456789", f"bearer {REDACTED}"),
        ("Basic dXNlcjpwYXNz", f"Basic {REDACTED}"),
        ("postgresql://atelier:s3cr3t@127.0.0.1:5432/atelier", f"postgresql://atelier:{REDACTED}@127.0.0.1:5432/atelier"),
        ("nats://:pw@host", f"nats://:{REDACTED}@host"),
        ("host=h user=u password=pw dbname=d", f"host=h user=u password={REDACTED} dbname=d"),
        ("GET /o?X-Amz-Signature=0123abc&x=1", f"GET /o?X-Amz-Signature={REDACTED}&x=1"),
        ("a plain sentence, the bearer of news", "a plain sentence, the bearer of news"),
        ("http://host:8080/path", "http://host:8080/path"),
    ],
)  # fmt: skip
def test_secrets_within_texts_are_covered(text: Any, clean: Any) -> None:
    assert redact(text) == clean


@given(st.text(max_size=5), st.from_regex(logging._SECRET_TEXT.pattern), st.text(max_size=5))
def test_no_secret_is_passed_over_by_the_quick_look(before: str, secret: str, after: str) -> None:
    text = before + secret + after
    if logging._SECRET_TEXT.search(text):
        assert logging._may_hold_a_secret(text)
    line = {"event": "said", "count": 1, "what": text}
    assert logging._render(None, "info", dict(line)) == logging._dump(redact(line))


@pytest.mark.parametrize(
    "line",
    [
        {"token": "t"},
        {"event": "e", "deep": {"token": "t"}},
        {"event": "Bearer abcdefghijkl"},
        {"event": "ba\u017fic abcdefghijkl"},  # a long s is an s without regard to case
        {"data": b"x"},
    ],
)
def test_the_quick_look_sees_what_is_to_be_covered(line: Any) -> None:
    assert logging._render(None, "info", dict(line)) == logging._dump(redact(line)) != logging._dump(line)


class File(io.BytesIO):
    """Notes what was written at a time."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []

    def write(self, data: Any) -> int:
        self.writes.append(bytes(data))
        return len(data)


async def test_lines_of_one_turn_are_written_together_and_a_warning_at_once() -> None:
    file = File()
    lines = logging.LineWriter(file)
    lines.info(b"one")
    lines.info(b"two")
    assert file.writes == []
    await asyncio.sleep(0)
    assert file.writes == [b"one\ntwo\n"]
    lines.info(b"three")
    lines.warning(b"four")
    assert file.writes[1:] == [b"three\nfour\n"]
    await asyncio.sleep(0)
    assert len(file.writes) == 2


async def test_a_line_of_another_thread_does_not_wait_for_the_loop() -> None:
    file = File()
    lines = logging.LineWriter(file)
    lines.info(b"one")
    thread = threading.Thread(target=lines.info, args=(b"two",))
    thread.start()
    thread.join()
    assert file.writes == [b"one\ntwo\n"]


def test_bytes_and_deep_nesting_are_not_written_out() -> None:
    assert redact(b"secret") == "<6 bytes>"
    nest: object = "Bearer abcdefghijkl"
    for _ in range(20):
        nest = [nest]
    assert "abcdefghijkl" not in json.dumps(redact(nest))


SCRIPT = f"""
import logging
from meshkit import tracing
from meshkit.logging import configure, get_logger
configure("tasks", "info")
tracing.use(tracing.parse("00-{"a" * 32}-{"b" * 16}-01"))
tracing.assign_tenant("acme")
log = get_logger("mod")
log.debug("unseen")
log.info("seen %s", "{JWT}", token="t", size=3)
try:
    raise ValueError("postgres://u:pw@h/d")
except ValueError:
    log.exception("broke")
logging.getLogger("lib").warning("password=pw of %s", "lib")
logging.getLogger("lib").info("unseen too")
"""

LAST_WORDS = """
import asyncio
from meshkit.logging import configure, get_logger
configure("tasks", "info")
async def main():
    get_logger("mod").info("first")
    asyncio.get_running_loop().call_soon(lambda: get_logger("mod").info("last"))
asyncio.run(main())
"""


def test_what_is_said_as_the_loop_ends_is_written() -> None:
    done = subprocess.run([sys.executable, "-c", LAST_WORDS], capture_output=True, text=True, check=True, timeout=60)
    assert [json.loads(line)["event"] for line in done.stderr.splitlines()] == ["first", "last"]


def test_a_program_that_configures_nothing_hears_of_trouble_alone() -> None:
    script = "from meshkit.logging import get_logger as g; g('m').info('unseen'); g('m').warning('seen')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == ""
    assert "unseen" not in done.stderr
    assert "seen" in done.stderr


def test_lines_are_json_with_trace_and_without_secrets() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    assert [line["event"] for line in lines] == [f"seen {REDACTED}", "broke", f"password={REDACTED} of lib"]
    assert all(line["trace_id"] == "a" * 32 and line["tenant"] == "acme" for line in lines)
    assert all(line["service"] == "tasks" for line in lines)
    assert (lines[0]["token"], lines[0]["size"], lines[0]["module"]) == (REDACTED, 3, "mod")
    assert f"u:{REDACTED}@h" in lines[1]["exception"]
    assert lines[2]["logger"] == "lib"
    assert done.stdout == ""


class Disk:
    """A file that takes a few bytes, then none until there is room again."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.content = b""

    def write(self, data: bytes, /) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        taken = data[: self.room]
        self.room -= len(taken)
        self.content += taken
        return len(taken)


def dropped() -> float:
    return float(logging._DROPPED._value.get())


def test_lines_that_cannot_be_written_are_dropped_and_counted() -> None:
    disk, before = Disk(8), dropped()
    lines = logging.LineWriter(disk)
    lines.error(b"one")
    lines.error(b"two is torn")
    lines.error(b"three")
    assert dropped() == before + 2
    disk.room = 100
    lines.error(b"four")
    lines.error(b"five")
    assert disk.content == b"one\ntwo \nfour\nfive\n", "what follows begins on a line of its own"
    assert dropped() == before + 2


@pytest.mark.parametrize("answer", [BrokenPipeError(), BlockingIOError(), ValueError("closed"), None])
def test_no_log_line_fails_who_logs(answer: Exception | None) -> None:
    class Gone:
        def write(self, data: bytes, /) -> int | None:
            if answer is not None:
                raise answer
            return None

    before = dropped()
    logging.LineWriter(Gone()).error(b"line")
    assert dropped() == before + 1


def test_an_event_that_cannot_be_rendered_is_dropped() -> None:
    class Unspeakable:
        def __str__(self) -> str:
            raise RuntimeError

    before = dropped()
    process = logging._dropping(logging._stamp("test"), logging._render)
    with pytest.raises(structlog.DropEvent):
        process(None, "info", {"event": "said", "what": Unspeakable()})
    assert dropped() == before + 1
