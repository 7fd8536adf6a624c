"""The chain that every call passes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from atelier.tasks.v1.noop_pb2 import CreateNoopTask
from atelier.tasks.v1.task_pb2 import CreateTask

from meshkit import server
from meshkit.auth import Principal
from meshkit.config import MeshSettings
from meshkit.errors import ErrorKind, MeshError, conflict
from meshkit.interceptors import (
    DEFAULTED,
    KEYED,
    SCOPED,
    TRACED,
    TRANSLATED,
    Call,
    CalledMethod,
    CallLimits,
    Interceptor,
    InterceptorChain,
    limited,
)
from meshkit.recalling import Followers, Stranded, dismissed, recalled
from meshkit.unbundling import BundledContext

UNARY = CalledMethod("Shop/Buy", "write")
STREAM = CalledMethod("Shop/Watch", "read", gives_stream=True)
REFUSED = conflict("not now")


class Aborted(Exception):  # noqa: N818 -- stands for gRPC's
    """What a context raises that was told to end the call."""


class Context(BundledContext):
    """A context that notes how a call was ended."""

    def __init__(self) -> None:
        super().__init__({})
        self.codes: list[grpc.StatusCode] = []

    async def abort(self, code: grpc.StatusCode, _details: str, _trailing: Any) -> None:
        self.codes.append(code)
        raise Aborted


def noted(name: str, seen: list[str], *, refuses: bool = False) -> Interceptor:
    def enter(_call: Call) -> None:
        seen.append(name)
        if refuses:
            raise REFUSED

    return Interceptor(enter=enter, leave=lambda _: seen.append(f"-{name}"))


async def answer(request: Any, _context: Any) -> Any:
    return request


async def count(request: Any, _context: Any) -> AsyncIterator[int]:
    for number in range(request):
        yield number


async def test_interceptors_are_entered_in_order_and_left_in_reverse() -> None:
    seen: list[str] = []
    chain = InterceptorChain([noted("a", seen), TRANSLATED, noted("b", seen)])
    assert await chain.unary(UNARY, answer)(7, Context()) == 7
    assert seen == ["a", "b", "-b", "-a"]
    seen.clear()
    assert [each async for each in chain.stream(STREAM, count)(2, Context())] == [0, 1]
    assert seen == ["a", "b", "-b", "-a"]


async def test_only_what_was_entered_is_left() -> None:
    seen: list[str] = []
    chain = InterceptorChain([noted("a", seen), noted("b", seen, refuses=True), noted("c", seen)])
    with pytest.raises(MeshError):
        await chain.unary(UNARY, answer)(7, Context())
    assert seen == ["a", "b", "-a"]


async def test_what_an_interceptor_returns_is_awaited() -> None:
    seen: list[str] = []

    async def slow(_call: Call) -> None:
        await asyncio.sleep(0)
        seen.append("slow")

    chain = InterceptorChain([Interceptor(enter=slow), noted("b", seen)])
    await chain.unary(UNARY, answer)(7, Context())
    assert seen[:2] == ["slow", "b"]


async def test_any_error_becomes_one_of_the_mesh_and_the_code_of_the_call() -> None:
    codes: list[grpc.StatusCode] = []
    chain = InterceptorChain(
        [Interceptor(enter=lambda _: None, leave=lambda call: codes.append(call.code)), TRANSLATED]
    )

    async def broken(_request: Any, _context: Any) -> Any:
        raise RuntimeError("password=hunter2")

    async def cancelled(_request: Any, _context: Any) -> Any:
        raise asyncio.CancelledError

    with pytest.raises(MeshError, match=r"Internal error [0-9a-f]{16}$") as caught:
        await chain.unary(UNARY, broken)(7, Context())
    assert caught.value.kind is ErrorKind.INTERNAL
    with pytest.raises(asyncio.CancelledError):
        await chain.unary(UNARY, cancelled)(7, Context())
    assert codes == [grpc.StatusCode.INTERNAL, grpc.StatusCode.CANCELLED]


async def test_a_stream_ends_its_call_itself() -> None:
    async def broken(_request: Any, _context: Any) -> AsyncIterator[int]:
        yield 1
        raise REFUSED

    context = Context()
    responses = InterceptorChain([TRANSLATED]).stream(STREAM, broken)(7, context)
    assert await anext(responses) == 1
    with pytest.raises(Aborted):
        await anext(responses)
    assert context.codes == [grpc.StatusCode.FAILED_PRECONDITION]


async def test_limits_count_what_is_being_served_alone() -> None:
    limits = CallLimits(max_calls=2, max_streams=1)
    chain = InterceptorChain([limited(limits)])
    watching = chain.stream(STREAM, count)(5, Context())
    assert await anext(watching) == 0
    assert limits.calls == 1
    with pytest.raises(Aborted):
        await anext(chain.stream(STREAM, count)(5, context := Context()))
    assert context.codes == [grpc.StatusCode.RESOURCE_EXHAUSTED], "one stream of two calls"
    assert await chain.unary(UNARY, answer)(7, Context()) == 7
    await watching.aclose()
    assert limits.calls == 0


class Verifier:
    async def verify(self, _token: str) -> Principal:
        return Principal("ada", "acme", frozenset())


VERIFIER: Any = Verifier()


async def test_a_server_that_stops_ends_what_only_follows() -> None:
    followers = Followers()
    chain = InterceptorChain([TRANSLATED, dismissed(followers)])
    follows = CalledMethod("Service/Watch", "read", gives_stream=True)
    works = CalledMethod("Service/Run", "write", gives_stream=True)
    began, ends = asyncio.Event(), asyncio.Event()

    async def wait(_request: Any, _context: Any) -> AsyncIterator[int]:
        began.set()
        await ends.wait()
        yield 1

    async def drain(responses: AsyncIterator[int]) -> list[int]:
        return [each async for each in responses]

    context = Context()
    following = asyncio.create_task(drain(chain.stream(follows, wait)(7, context)))
    working = asyncio.create_task(drain(chain.stream(works, wait)(7, Context())))
    await began.wait()
    await asyncio.sleep(0)
    followers.dismiss()
    with pytest.raises(Aborted):
        await following
    assert context.codes == [grpc.StatusCode.UNAVAILABLE]
    with pytest.raises(MeshError) as late:
        await chain.unary(UNARY, answer)(7, Context())
    assert late.value.reason == "SERVICE_STOPPING"
    ends.set()
    assert await working == [1], "what does work may end it"


async def test_calls_end_that_wait_for_what_their_server_lost() -> None:
    stranded = Stranded()
    chain = InterceptorChain([TRANSLATED, recalled(stranded)])
    begun, held = asyncio.Event(), asyncio.Event()
    cancelled = 0

    async def waits(_request: Any, _context: Any) -> list[int]:
        nonlocal cancelled
        while True:
            begun.set()
            try:
                await held.wait()
            except asyncio.CancelledError:
                # As a driver that tells the server of it first, and waits for what does not come.
                cancelled += 1
                if cancelled == 2:
                    raise
            else:
                return [1]

    async def call() -> str:
        with pytest.raises(MeshError) as ended:
            await chain.unary(UNARY, waits)(7, Context())
        return ended.value.reason

    waiting = asyncio.create_task(call())
    await begun.wait()
    begun.clear()
    stranded.end()
    await begun.wait()
    stranded.end()
    assert await waiting == "REPLICA_CUT_OFF"
    held.set()
    assert await chain.unary(UNARY, waits)(7, Context()) == [1], "what comes later is served"


async def test_a_caller_that_gives_up_is_told_nothing() -> None:
    chain = InterceptorChain([TRANSLATED, recalled(Stranded())])
    begun = asyncio.Event()

    async def waits(_request: Any, _context: Any) -> None:
        begun.set()
        await asyncio.Event().wait()

    waiting = asyncio.create_task(chain.unary(UNARY, waits)(7, Context()))
    await begun.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


def test_the_order_of_a_server() -> None:
    settings = MeshSettings(max_free_form_elements=2)
    listed = server.interceptors(settings, CallLimits(2, 1), Followers(), VERIFIER, lambda: 0.0, stranded=Stranded())
    fixed = [one for one in listed if one in (TRANSLATED, TRACED, KEYED, SCOPED, DEFAULTED)]
    assert fixed == [TRANSLATED, TRACED, KEYED, SCOPED, DEFAULTED]
    validates = listed[listed.index(DEFAULTED) + 1]
    task = CreateTask(origin_instance="i", noop=CreateNoopTask(steps=1))
    task.config.update({"a": 1, "b": 2})
    assert validates.enter is not None
    call = Call(UNARY, task, Context())
    assert validates.enter(call) is None
    call.request.config.update({"c": 3})
    with pytest.raises(MeshError, match="at most 2 members"):
        validates.enter(call)
    assert listed.index(TRACED) < len(listed) - listed[::-1].index(SCOPED) - 1, (
        "what is refused is logged with its trace"
    )
    assert listed[0].leave is not None, "what any other refuses is measured"
