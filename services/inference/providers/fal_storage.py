"""fal's storage: large inputs are uploaded, and their address is sent in place of a data URL.

`POST /storage/upload/initiate` with `content_type` and `file_name` answers `upload_url` and `file_url`. The file goes
to the first by a PUT without the key; the application is given the second.

Nothing here costs money, so that an upload that fails is made again with the next attempt. Who knows the address of a
file can read it; fal is asked to delete it after a day.
"""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Mapping
from typing import Any

from meshkit.logging import get_logger
from services.inference.providers.errors import Fault, ProviderError
from services.inference.providers.fal_queue import NAME
from services.inference.providers.http import ProviderHttp
from services.inference.providers.kit import ProviderKit

_log = get_logger(__name__)

_INITIATE = "/storage/upload/initiate"
_UPLOAD_SECONDS = 120.0
_LIFETIME = json.dumps({"expiration_duration_seconds": 86_400})


def open_storage(kit: ProviderKit) -> FalStorage:
    """Return the worker's way to fal's storage."""
    settings = kit.settings
    http = kit.http(
        f"{NAME}-storage", settings.fal_rest_url, {"authorization": f"Key {settings.fal_key.get_secret_value()}"}
    )
    return FalStorage(http, settings.fal_upload_bytes)


class FalStorage:
    """Uploads inputs.

    Args:
        http: Connections to it, with the key.
        largest: A data URL that is longer is uploaded.
    """

    def __init__(self, http: ProviderHttp, largest: int) -> None:
        self._http = http
        self._largest = largest

    async def placed(self, arguments: Mapping[str, Any]) -> dict[str, Any]:
        """Return what an application is given, with addresses for its large files; one that comes twice goes once.

        Raises:
            ProviderError: One could not be uploaded.
        """
        known: dict[str, str] = {}
        return {name: await self._placed(value, known) for name, value in arguments.items()}

    async def _placed(self, value: Any, known: dict[str, str]) -> Any:
        if isinstance(value, list):
            return [await self._placed(item, known) for item in value]
        if not isinstance(value, str) or len(value) <= self._largest or not value.startswith("data:"):
            return value
        if value not in known:
            known[value] = await self._uploaded(value)
        return known[value]

    async def _uploaded(self, data_url: str) -> str:
        head, _, encoded = data_url.partition(",")
        content_type = head.removeprefix("data:").partition(";")[0]
        content = await asyncio.to_thread(base64.b64decode, encoded)
        try:
            begun = await self._http.pay(
                _INITIATE,
                document={"content_type": content_type, "file_name": f"input.{content_type.rpartition('/')[2]}"},
                headers={"x-fal-object-lifecycle-preference": _LIFETIME},
                params={"storage_type": "gcs"},
            )
            if not begun.ok:
                raise begun.error()
            answer = begun.document()
            target, address = answer.get("upload_url"), self._http.names(answer.get("file_url"))
            if not isinstance(target, str) or address is None:
                raise begun.error(Fault.BROKEN)
            reply = await self._http.upload(target, content, content_type, seconds=_UPLOAD_SECONDS)
            if not reply.ok:
                raise reply.error(Fault.BROKEN)
        except ProviderError as error:
            # What is lost on its way here was not paid for.
            if error.fault in (Fault.UNKNOWN, Fault.EMPTY):
                raise ProviderError(Fault.BROKEN, NAME, http_status=error.http_status) from None
            raise
        _log.info("input_uploaded", provider=NAME, bytes=len(content))
        return address
