"""Clips that providers made: judged and cut to length by a child process (`clip_child`)."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from pathlib import Path

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_RESOURCE

from meshkit.children import environment_without_secrets
from meshkit.logging import get_logger
from meshkit.worker.handlers import TaskFailed
from services.inference.providers import clip_child
from services.inference.providers.errors import Fault, ProviderError

_log = get_logger(__name__)

_SECONDS = 300.0


async def write_clip(provider: str, data: bytes, target: Path, seconds: float) -> None:
    """Write a clip as an MP4 of at most this length.

    Args:
        provider: The provider's name, for sentences.
        data: The clip as it came.
        target: Where it is written.
        seconds: Its length; what a provider made beyond it is cut off.

    Raises:
        ProviderError: `EMPTY` where it is no clip.
        TaskFailed: `RESOURCE` where clips cannot be judged here; the provider has done its part.
    """
    source = target.with_name(f"{target.stem}-made")
    await asyncio.to_thread(source.write_bytes, data)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", clip_child.__name__, str(source), str(target), str(seconds)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env=environment_without_secrets(),
        start_new_session=True,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            status = await process.wait()
    except TimeoutError:
        status = clip_child.NO_CLIP
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        await asyncio.to_thread(source.unlink, missing_ok=True)
    if status == 0:
        return
    await asyncio.to_thread(target.unlink, missing_ok=True)
    _log.warning("clip_not_taken", provider=provider, status=status)
    # What a signal has ended, as one for too much memory, is the clip's doing; any other end is not.
    if status == clip_child.NO_CLIP or status < 0:
        raise ProviderError(Fault.EMPTY, provider)
    raise TaskFailed("Clips cannot be judged by this worker right now.", ERROR_CATEGORY_RESOURCE, retryable=True)
