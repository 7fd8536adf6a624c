"""Have files of `torch.save` made safetensors, each in a child process of its own that may do nothing else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from meshkit.errors import MeshError, invalid, unavailable
from meshkit.logging import get_logger

_log = get_logger(__name__)

MEMBER: Final = "file"
_MAX_ANSWER_BYTES: Final = 64 * 1024
_UNAVAILABLE: Final = "Files of this kind cannot be converted right now"
_CHILD: Final = "services.training.library.conversion.child"
_START_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """What one conversion may take.

    Attributes:
        memory_bytes: Address space of the child.
        file_bytes: Largest file that it may write.
        seconds: Time that it has to read the file; computing time and time of day.
    """

    memory_bytes: int = 512 << 20
    file_bytes: int = 1 << 30
    seconds: float = 60.0


class PickleConverter:
    """Converts files.

    Args:
        limits: What one conversion may take.
        at_once: Conversions at once; more wait.
    """

    def __init__(self, limits: ConversionLimits, *, at_once: int = 1) -> None:
        self._limits = limits
        self._turns = asyncio.Semaphore(at_once)

    async def convert(self, source: Path, into: Path) -> list[str]:
        """Write what a file of torch holds as safetensors.

        Args:
            source: The file.
            into: Where the result is written; nothing is left there on an error.

        Returns:
            What held the child beside its limits.

        Raises:
            MeshError: `INVALID` with what is wrong with the file, `UNAVAILABLE` where the child ends before it reads
                it.
        """
        async with self._turns:
            done = False
            try:
                measures, answer = await self._ask(source, into)
                done = "tensors" in answer
            finally:
                if not done:
                    await asyncio.to_thread(into.unlink, missing_ok=True)
        if not done:
            raise refused(str(answer.get("refusal", "it is damaged")))
        _log.info("lora_converted", tensors=answer["tensors"], measures=measures)
        return measures

    async def _ask(self, source: Path, into: Path) -> tuple[list[str], dict[str, Any]]:
        limits = self._limits
        with contextlib.ExitStack() as stack:
            reading = stack.enter_context(source.open("rb"))
            writing = stack.enter_context(into.open("wb"))
            try:
                child = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-I", "-B", "-m", _CHILD, "--parent", str(os.getpid())),
                    *("--source", str(reading.fileno()), "--into", str(writing.fileno())),
                    *("--memory", str(limits.memory_bytes), "--file-bytes", str(limits.file_bytes)),
                    *("--cpu-seconds", str(max(1, int(limits.seconds)))),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.PIPE,
                    stderr=asyncio.subprocess.DEVNULL,
                    pass_fds=(reading.fileno(), writing.fileno()),
                    env={},
                    cwd="/",
                    start_new_session=True,
                    limit=_MAX_ANSWER_BYTES,
                )
            except OSError:
                _log.exception("lora_child_not_started")
                raise unavailable(_UNAVAILABLE) from None
        assert child.stdout is not None
        answer: dict[str, Any] = {}
        try:
            held = await _started(child.stdout)
            if held:
                async with asyncio.timeout(limits.seconds):
                    answer = await _line(child.stdout)
                    await child.wait()
        except TimeoutError:
            raise refused(f"it takes more than {limits.seconds:g} s to read") from None
        finally:
            await asyncio.shield(_end(child))
        if not held:
            _log.error("lora_child_not_ready", status=child.returncode)
            raise unavailable(_UNAVAILABLE)
        if not answer:
            _log.warning("lora_child_lost", status=child.returncode)
        return list(held["measures"]), answer


async def _started(stream: asyncio.StreamReader) -> dict[str, Any]:
    """Read what the child says when it begins to read the file; empty where it does not get there."""
    try:
        async with asyncio.timeout(_START_SECONDS):
            return await _line(stream)
    except TimeoutError:
        return {}


async def _line(stream: asyncio.StreamReader) -> dict[str, Any]:
    """Read what the child says next; empty where it says nothing that can be understood."""
    try:
        told = json.loads(await stream.readline())
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def refused(reason: str) -> MeshError:
    """Return the refusal of a file: its reason may name what the file names, so it is made safe to show."""
    shown = "".join(one for one in reason if one.isascii() and one.isprintable())[:200]
    return invalid(MEMBER, f"The file cannot be taken: {shown}. A LoRA holds tensors alone.", "lora_pickle")


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    await child.wait()
