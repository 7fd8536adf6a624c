"""One long job in a child process of its own: started for it, ended with it.

A worker whose jobs take hours holds no model between them. What a job tells before its end (a file that is whole, a
step) is taken one after the other, in order; the job does not wait for that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from atelier.inference.v1.child_pb2 import ChildDone, ChildJob, ChildMessage, ChildProgress

from meshkit.worker.supervisor import ChildLimits, ChildLost, ChildNotStarted, ChildSupervisor

_STOP_SECONDS = 3.0  # a cancelled call has five to end
_NUMBER = 1


class JobProcess:
    """Runs one job.

    Args:
        command: Command of the child; see `ChildSupervisor`.
        limits: What it may take.
        environment: Its environment.
        on_lost: Called with `died`, `memory`, `deadline` or `start` where the child was lost.
        stop_seconds: How long the child may take to end once its job is not wanted any more.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        limits: ChildLimits,
        environment: Mapping[str, str] | None = None,
        on_lost: Callable[[str], None] = lambda _: None,
        stop_seconds: float = _STOP_SECONDS,
    ) -> None:
        self._supervisor = ChildSupervisor(command, limits=limits, environment=environment, on_lost=on_lost, once=True)
        self._stop_seconds = stop_seconds
        self._paused = False

    @property
    def pid(self) -> int | None:
        """Process of the child, while it lives."""
        return self._supervisor.pid

    async def run(
        self,
        job: ChildJob,
        *,
        on_progress: Callable[[ChildProgress], None] = lambda _: None,
        on_message: Callable[[ChildMessage], Awaitable[None]],
    ) -> ChildDone:
        """Run the job to its end, and take all that it has said.

        Args:
            job: The job; its number is given here.
            on_progress: Called with each report of progress.
            on_message: Awaited with one message after the other; what it raises ends the job, and is raised here.

        Raises:
            ChildNotStarted: The child ended before it took the job.
            ChildLost: The child ended before the job did.
        """
        job.number = _NUMBER
        said: asyncio.Queue[ChildMessage | None] = asyncio.Queue()

        async def take() -> None:
            while (message := await said.get()) is not None:
                await on_message(message)

        taking = asyncio.ensure_future(take())
        ended: asyncio.Future[list[ChildDone]] | None = None
        self._supervisor.start()
        try:
            await self._supervisor.wait_ready()
            ended = self._supervisor.begin([job], on_progress, said.put_nowait)
            if self._paused:
                self._supervisor.pause(_NUMBER)
            either: set[asyncio.Future[Any]] = {ended, taking}
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                taking.result()
            [done] = await ended
            said.put_nowait(None)
            await taking
            return done
        finally:
            taking.cancel()
            if ended is not None:
                ended.cancel()  # what becomes of the job from here on, nobody asks
            self._supervisor.cancel(_NUMBER)
            await self._supervisor.stop(self._stop_seconds)
            await asyncio.gather(taking, return_exceptions=True)

    async def probe(self) -> str:
        """Start the child and end it; returns why it does not start, empty where it does."""
        self._supervisor.start()
        try:
            await self._supervisor.wait_ready()
        except ChildNotStarted as lost:
            return lost.fault
        except ChildLost as lost:  # it is being stopped
            return lost.message
        finally:
            await self._supervisor.stop(self._stop_seconds)
        return ""

    def pause(self) -> None:
        """Ask the job to stop where another attempt can go on."""
        self._paused = True
        self._supervisor.pause(_NUMBER)

    def say(self, kind: str, text: str) -> None:
        """Tell the job something; without effect where it does not run."""
        self._supervisor.say(ChildMessage(number=_NUMBER, kind=kind, text=text))
