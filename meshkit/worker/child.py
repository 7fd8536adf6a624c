"""The child's side of a worker: a process that owns the device, runs jobs on threads and dies with its parent.

The main thread is the control thread: it only reads frames, so a cancel is seen while a job computes. Jobs run on as
many threads as the worker has slots. The locks of the models serialise work on one device.
"""

from __future__ import annotations

import contextlib
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable, Sequence

from atelier.inference.v1.child_pb2 import (
    ChildBatch,
    ChildDone,
    ChildFailure,
    ChildHello,
    ChildMessage,
    ChildProgress,
    ChildResident,
    FromChild,
    ToChild,
)
from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION

from meshkit.wire import BlockingPipe, WireError, pack
from meshkit.worker.job_context import JobContext

_LOOK, _END = True, False  # what wakes a job thread: look for batches, or look for them a last time and end
_TOO_LARGE = ChildFailure(message="The result is too large.", category=ERROR_CATEGORY_VALIDATION)


Execute = Callable[[Sequence[JobContext]], Sequence[ChildDone]]
"""Runs one batch to its end; one `ChildDone` a job, in order, and no exception."""

Resident = Callable[[], ChildResident | None]
"""What is in memory, or None where that cannot change."""


class ChildRuntime:
    """Reads frames, runs batches on threads, sends outcomes.

    Args:
        sock: The child's end of the socketpair.
        execute: Runs one batch.
        resident: Tells what is in memory after a batch.
        threads: Batches that run at once.
    """

    def __init__(self, sock: socket.socket, *, execute: Execute, resident: Resident, threads: int) -> None:
        self._pipe = BlockingPipe(sock, ToChild)
        self._execute = execute
        self._resident = resident
        self._threads = threads
        self._batches: deque[list[JobContext]] = deque()
        self._calls: queue.SimpleQueue[bool] = queue.SimpleQueue()  # each wakes a job thread
        self._called = False
        self._frames: queue.SimpleQueue[bytes] = queue.SimpleQueue()  # an empty one ends the sending thread
        self._jobs: dict[
            int, JobContext
        ] = {}  # written by the control thread, emptied by job threads; dict ops are atomic
        self._told: bytes | None = None

    def serve(self, hello: ChildHello) -> int:
        """Say hello and work until told to stop; returns the exit status."""
        workers = [
            threading.Thread(target=self._work, name=f"job-{index}", daemon=True) for index in range(self._threads)
        ]
        teller = threading.Thread(target=self._tell, name="frames", daemon=True)
        for thread in (teller, *workers):
            thread.start()
        self._send(FromChild(hello=hello))
        while (frames := self._pipe.receive()) is not None:
            for frame in frames:
                if frame.WhichOneof("frame") != "stop":
                    self._obey(frame)
                    continue
                for _ in workers:
                    self._calls.put(_END)
                for worker in workers:
                    worker.join()
                self._frames.put(b"")
                teller.join()
                return 0
        # The parent is gone: nobody takes the outcome of what still runs, and it may hold the device for minutes.
        os._exit(1)

    def _obey(self, frame: ToChild) -> None:
        kind = frame.WhichOneof("frame")
        if kind == "run":
            self._accept(frame.run)
        elif kind == "cancel":
            if (job := self._jobs.get(frame.cancel.number)) is not None:
                job.cancel()
        elif kind == "pause":
            if (job := self._jobs.get(frame.pause.number)) is not None:
                job.pause()
        elif kind == "message" and (job := self._jobs.get(frame.message.number)) is not None:
            job.hear(frame.message)

    def _accept(self, batch: ChildBatch) -> None:
        contexts = [JobContext(job, self._progressed, say=self._say) for job in batch.jobs]
        for context in contexts:
            self._jobs[context.number] = context
        self._batches.append(contexts)
        self._call()

    def _call(self) -> None:
        """Wake a job thread, unless one is waking: with many short batches, most would find none left."""
        if not self._called:
            self._called = True
            self._calls.put(_LOOK)

    def _work(self) -> None:
        going = True
        while going:
            going = self._calls.get()
            self._called = False  # before the look at the batches, so that what comes after it calls again
            while batch := self._next():
                self._run(batch)

    def _next(self) -> list[JobContext] | None:
        try:
            batch = self._batches.popleft()
        except IndexError:
            return None
        if self._batches:
            self._call()  # this one may take long
        return batch

    def _run(self, batch: list[JobContext]) -> None:
        done = self._execute(batch)
        for context, outcome in zip(batch, done, strict=True):
            self._jobs.pop(context.number, None)
            outcome.number = context.number
            try:
                self._send(FromChild(done=outcome))
            except WireError:  # an exception here would end the thread unnoticed
                self._send(FromChild(done=ChildDone(number=context.number, failure=_TOO_LARGE)))
        self._tell_resident()

    def _tell_resident(self) -> None:
        resident = self._resident()
        if resident is None:
            return
        now = resident.SerializeToString(deterministic=True)
        if now != self._told:
            self._told = now
            self._send(FromChild(resident=resident))

    def _progressed(self, report: ChildProgress) -> None:
        self._send(FromChild(progress=report))

    def _say(self, message: ChildMessage) -> None:
        self._send(FromChild(message=message))

    def _send(self, frame: FromChild) -> None:
        self._frames.put(pack(frame))

    def _tell(self) -> None:
        """Send the frames of job threads, all that wait at once, so that the parent wakes once."""
        while frame := self._frames.get():
            frames = [frame]
            with contextlib.suppress(queue.Empty):
                while frame := self._frames.get_nowait():
                    frames.append(frame)
            try:
                self._pipe.send(b"".join(frames))
            except OSError:
                os._exit(1)  # as for the end of file: the parent is gone
            if not frame:
                return
