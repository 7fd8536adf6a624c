import asyncio
import os
import sys
from typing import Any

import pytest

from meshkit import loops
from meshkit.loops import MAX_RESTARTS, KeptLoop, Loop, LoopEventKind, Loops, LoopState, coalesced


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- what is waited for has no event
            await asyncio.sleep(0.001)


async def test_a_body_runs_again_and_again() -> None:
    runs: list[int] = []
    async with Loops(Loop("again", lambda: collect(runs), 0.01)):
        await until(lambda: len(runs) >= 3)


async def collect(runs: Any, result: Any = None) -> Any:
    runs.append(1)
    return result


async def test_a_wake_up_ends_the_pause() -> None:
    runs: list[int] = []
    loop = Loop("woken", lambda: collect(runs), 3600)
    async with Loops(loop):
        loop.wake()
        await until(lambda: len(runs) == 1)
        loop.wake()
        await until(lambda: len(runs) == 2)


async def test_a_wake_up_during_a_run_is_not_lost() -> None:
    runs: list[int] = []

    async def body() -> None:
        runs.append(1)
        if len(runs) == 1:
            loop.wake()

    loop = Loop("busy", body, 3600)

    async with Loops(loop):
        loop.wake()
        await until(lambda: len(runs) == 2)


async def test_true_means_more_at_once() -> None:
    runs: list[int] = []
    loop = Loop("more", lambda: collect(runs, len(runs) < 4), 3600)
    async with Loops(loop):
        loop.wake()
        await until(lambda: len(runs) == 5)


async def test_a_failing_body_is_counted_and_slows_down() -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    loop = Loop("failing", fail, 1.0, jitter=0)
    pauses = []
    for _ in range(12):
        assert await loop.run_once() is False
        pauses.append(loop._pause_seconds())
    assert loop.failures == 12
    assert pauses[:4] == [2, 4, 8, 16]
    assert pauses[-1] == 60


async def test_a_loop_outlives_any_number_of_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    loop = Loop("hopeless", lambda: collect([]), 3600)

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    loop.failures = 5000
    loop.wake()
    await loop._pause(60)
    assert slept == [5.0]


async def test_a_success_ends_the_back_off() -> None:
    outcomes = [RuntimeError("once"), None]

    async def body() -> None:
        if (outcome := outcomes.pop(0)) is not None:
            raise outcome

    loop = Loop("recovering", body, 1.0, jitter=0)
    await loop.run_once()
    await loop.run_once()
    assert (loop.failures, loop._pause_seconds()) == (0, 1.0)
    assert loop.last_success is not None


async def test_stopping_cancels_a_run_in_flight() -> None:
    started, ended = asyncio.Event(), asyncio.Event()

    async def hang() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    loop = Loop("hanging", hang, 3600)
    loops = Loops(loop)
    loops.start()
    loop.wake()
    await started.wait()
    await loops.stop()
    assert ended.is_set()


async def test_a_loop_added_later_runs_too() -> None:
    runs: list[int] = []
    async with Loops(Loop("first", lambda: collect([]), 3600)) as loops:
        loops.add(Loop("second", lambda: collect(runs), 0.01))
        await until(lambda: runs)


async def test_work_that_is_asked_for_again_and_again_is_done_once_a_moment_later() -> None:
    runs: list[int] = []
    ask = coalesced(lambda: runs.append(1), 0.01)
    for _ in range(5):
        ask()
    assert runs == [], "nobody waits for it"
    await until(lambda: runs)
    await asyncio.sleep(0.03)
    assert runs == [1]
    ask()
    await until(lambda: len(runs) == 2)


async def test_a_task_that_forgets_a_cancellation_is_ended_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_CANCEL_AGAIN_SECONDS", 0.01)
    forgotten = 0

    async def forgetful() -> None:
        nonlocal forgotten
        while True:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                forgotten += 1
                if forgotten > 2:
                    raise

    task = asyncio.create_task(forgetful())
    await asyncio.sleep(0)
    async with asyncio.timeout(60):
        await loops.cancel([task])
    assert task.cancelled()
    assert forgotten == 3


async def test_a_loop_that_is_woken_and_stopped_at_once_ends() -> None:
    wake = asyncio.Event()

    async def body() -> None:
        return

    for _ in range(200):
        running = Loops(Loop("woken", body, 3600.0, wake=wake))
        running.start()
        for _ in range(3):
            await asyncio.sleep(0)
        wake.set()
        await asyncio.sleep(0)
        async with asyncio.timeout(60):
            await running.stop()
        wake.clear()


async def test_a_loop_outlives_whatever_ends_its_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_RESTART_SECONDS", 0.01)
    runs = asyncio.Queue[int]()
    left: list[BaseException] = [asyncio.CancelledError(), OSError(28, "No space left on device")]

    async def body() -> None:
        runs.put_nowait(1)
        if left:
            raise left.pop()

    loop = Loop("outlives", body, 0.01)
    pause, broken = loop._pause, [1]

    async def break_once(seconds: float) -> None:
        if broken:
            broken.clear()
            raise OSError(28, "No space left on device")
        await pause(seconds)

    monkeypatch.setattr(loop, "_pause", break_once)
    async with Loops(loop) as running:
        async with asyncio.timeout(60):
            for _ in range(4):
                await runs.get()
        assert running.ailing == ["outlives"], "it is told that the loop itself ended"


async def test_a_loop_that_keeps_failing_is_ailing_until_it_works() -> None:
    works = False

    async def body() -> None:
        if not works:
            raise ValueError

    loop = Loop("fails", body, 0.01)
    running = Loops(loop)
    assert not running.ailing
    for _ in range(3):
        await loop.run_once()
    assert running.ailing == ["fails"]
    works = True
    await loop.run_once()
    assert not running.ailing


async def test_a_loop_goes_on_while_its_log_cannot_be_written() -> None:
    """As it is with standard error on a full disk: every write fails."""
    code = """
import asyncio, sys
from meshkit import logging
from meshkit.loops import Loop, Loops
logging.configure("test")
runs = asyncio.Queue()
async def body():
    runs.put_nowait(1)
    raise ValueError
async def main():
    loop = Loop("full", body, 0.001)
    async with Loops(loop):
        async with asyncio.timeout(60):
            for _ in range(4):
                await runs.get()
                loop.failures = 0
    print("went on")
asyncio.run(main())
"""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE, stderr=full
        )
        output, _ = await process.communicate()
    finally:
        os.close(full)
    assert output == b"went on\n"
    assert process.returncode == 0


class Crashing(Loop):
    """A loop whose run ends by itself so many times, at once."""

    def __init__(self, name: str, crashes: int) -> None:
        super().__init__(name, lambda: collect([]), 0.01)
        self.left = crashes

    async def run_for_ever(self) -> None:
        if self.left:
            self.left -= 1
            raise ConnectionResetError
        await super().run_for_ever()


async def test_a_loop_that_crashes_three_times_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_RESTART_SECONDS", 0.001)
    kept = KeptLoop(Crashing("three", 3))
    kept.start()
    await until(lambda: kept.loop.last_success is not None)
    assert (kept.state, kept.restart_count, kept.error) == (LoopState.RUNNING, 3, "ConnectionResetError")
    assert [(one.kind, one.attempt) for one in kept.events] == [
        (LoopEventKind.CRASHED, 0),
        (LoopEventKind.SUCCESS, 1),
        (LoopEventKind.CRASHED, 1),
        (LoopEventKind.SUCCESS, 2),
        (LoopEventKind.CRASHED, 2),
        (LoopEventKind.SUCCESS, 3),
    ]
    await kept.stop()
    assert kept.state is LoopState.STOPPED


async def test_a_loop_that_crashes_six_times_is_given_up_until_somebody_starts_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(loops, "_RESTART_SECONDS", 0.001)
    running = Loops(Crashing("six", 6))
    [kept] = running.kept
    async with running:
        await until(lambda: kept.state is LoopState.FAILED)
        assert kept.restart_count == MAX_RESTARTS
        assert (kept.events[-1].kind, kept.events[-1].attempt) == (LoopEventKind.FAILED, 5)
        assert running.ailing == ["six"]
        kept.start()
        assert (kept.state, kept.restart_count) == (LoopState.RUNNING, 0)
        await until(lambda: kept.loop.last_success is not None)


async def test_the_pause_before_a_restart_doubles_and_holds_no_other_loop_up(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        if seconds >= 1:
            pauses.append(seconds)
            ran = len(runs)
            while len(runs) == ran:  # the other one runs meanwhile
                await sleep(0.001)
        else:
            await sleep(seconds)

    monkeypatch.setattr(asyncio, "sleep", noted)
    runs: list[int] = []
    running = Loops(Crashing("slow", 6), Loop("other", lambda: collect(runs), 0.001))
    async with running:
        while running.kept[0].state is not LoopState.FAILED:
            await sleep(0.005)
    assert pauses == [1, 2, 4, 8, 16]


async def test_the_count_of_restarts_falls_while_a_loop_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_RESTART_SECONDS", 0.001)
    kept = KeptLoop(Crashing("decays", 3))
    kept.start()
    await until(lambda: kept.loop.last_success is not None)
    begun = kept._since
    for seconds, count in ((59, 3), (61, 2), (121, 1), (1000, 0)):
        kept._since = begun - seconds
        assert kept.restart_count == count
    await kept.stop()


async def test_a_restart_and_a_reset_zero_the_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "_RESTART_SECONDS", 0.001)
    told: list[int] = []
    kept = KeptLoop(Crashing("zeroed", 2), lambda: told.append(1))
    kept.start()
    await until(lambda: kept.loop.last_success is not None)
    started = kept.started_at
    await kept.restart()
    assert (kept.state, kept.restart_count) == (LoopState.RUNNING, 0)
    assert kept.started_at != started
    kept.loop.left = 6  # type: ignore[attr-defined]  # of the subclass above
    await kept.restart()
    await until(lambda: kept.state is LoopState.FAILED)
    kept.reset()
    assert (kept.state, kept.restart_count) == (LoopState.STOPPED, 0)
    assert told
