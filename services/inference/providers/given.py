"""The pictures that a task gives: read beside the calls, before anything is written down as being sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_VALIDATION, ProviderType
from PIL import Image

from meshkit.worker.handlers import CallContext, TaskFailed
from modelkit.errors import ModelError
from modelkit.pictures import open_picture

T = TypeVar("T")


async def read_given(path: Path, make: Callable[[Image.Image], T]) -> T:
    """Return what is made of a picture that the worker has taken in, in a thread of its own.

    Raises:
        TaskFailed: It cannot be read.
    """
    try:
        return await asyncio.to_thread(lambda: make(open_picture(path)))
    except ModelError as error:
        raise TaskFailed(error.message, ERROR_CATEGORY_VALIDATION, retryable=False) from error


def was_sent(context: CallContext, provider: ProviderType.ValueType) -> bool:
    """Tell whether an earlier attempt has sent a provider its request, so that this one sends nothing."""
    return any(request.provider_type == provider for request in context.open_requests)
