"""The three calls to Kubernetes' API that the marker makes: list, watch and patch pods of its namespace."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx

from meshkit.errors import MeshError, unavailable
from meshkit.logging import get_logger
from services.monitoring.marker.domain import Pod

_log = get_logger(__name__)

_PAGE = 500
_WATCH_SECONDS = 300
_TIMEOUT = httpx.Timeout(10.0)
# The server speaks at least once in the time of a watch, by a bookmark or by its end.
_WATCH_TIMEOUT = httpx.Timeout(10.0, read=_WATCH_SECONDS + 30.0)
_GONE = 410


class StaleWatchError(Exception):
    """The watch cannot go on from where it was: list again."""


class PodApi:
    """Pods of a namespace.

    Args:
        url: Address of the API server.
        namespace: The namespace.
        selector: Labels of the pods.
        token: File of the token; read for each request, because it changes.
        authority: File of the authority of the server's certificate; those of the system where absent.
    """

    def __init__(self, url: str, namespace: str, selector: str, *, token: Path, authority: Path | None = None) -> None:
        verify = ssl.create_default_context(cafile=str(authority)) if authority is not None else True
        self._http = httpx.AsyncClient(base_url=url, verify=verify, timeout=_TIMEOUT, trust_env=False)
        self._path = f"/api/v1/namespaces/{namespace}/pods"
        self._selector = selector
        self._token = token

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def pods(self) -> tuple[dict[str, Pod], str]:
        """Return all pods by name, and the version from which a watch goes on.

        Raises:
            MeshError: `UNAVAILABLE` where the API does not answer well.
        """
        found: dict[str, Pod] = {}
        parameters: dict[str, str | int] = {"labelSelector": self._selector, "limit": _PAGE}
        while True:
            answer = await self._call("GET", self._path, params=parameters)
            found.update((pod.name, pod) for pod in map(_pod, answer.get("items") or ()))
            metadata = answer.get("metadata") or {}
            if not metadata.get("continue"):
                return found, str(metadata.get("resourceVersion", ""))
            parameters["continue"] = metadata["continue"]

    async def watch(self, version: str) -> AsyncIterator[tuple[Pod, bool]]:
        """Return changes of pods from a version on: each pod, and whether it is there; ends as the server ends it.

        Raises:
            StaleWatchError: The server has forgotten the version.
            MeshError: `UNAVAILABLE` where the API does not answer well.
        """
        parameters: dict[str, str | int] = {
            "labelSelector": self._selector,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": version,
            "timeoutSeconds": _WATCH_SECONDS,
        }
        try:
            async with self._http.stream(
                "GET", self._path, params=parameters, headers=self._headers(), timeout=_WATCH_TIMEOUT
            ) as response:
                if response.status_code == _GONE:
                    raise StaleWatchError
                _require(response)
                async for line in response.aiter_lines():
                    event = json.loads(line)
                    kind, thing = event["type"], event["object"]
                    if kind == "ERROR":
                        raise StaleWatchError
                    if kind != "BOOKMARK":
                        yield _pod(thing), kind != "DELETED"
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            raise _away(error) from error

    async def annotate(self, pod: Pod, changes: Mapping[str, str | None]) -> Pod | None:
        """Change annotations of a pod; None where it is no more.

        Raises:
            MeshError: `UNAVAILABLE` where the API does not confirm it.
        """
        # With its uid, so that another pod of the same name is left alone.
        patch = {"metadata": {"uid": pod.uid, "annotations": dict(changes)}}
        try:
            response = await self._http.patch(
                f"{self._path}/{pod.name}",
                content=json.dumps(patch),
                headers={**self._headers(), "content-type": "application/merge-patch+json"},
            )
            if response.status_code in (httpx.codes.NOT_FOUND, httpx.codes.CONFLICT):
                return None
            _require(response)
            return _pod(response.json())
        except (httpx.HTTPError, OSError, ValueError, KeyError, TypeError) as error:
            raise _away(error) from error

    async def _call(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            response = await self._http.request(method, path, headers=self._headers(), **arguments)
            _require(response)
            return dict(response.json())
        except (httpx.HTTPError, OSError, ValueError, TypeError) as error:
            raise _away(error) from error

    def _headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self._token.read_text(encoding='ascii').strip()}"}


def _require(response: httpx.Response) -> None:
    if not response.is_success:
        raise unavailable(f"Kubernetes answers {response.status_code}", reason="KUBERNETES_REFUSED")


def _away(error: Exception) -> MeshError:
    return unavailable(f"Kubernetes does not answer: {type(error).__name__}", reason="KUBERNETES_UNAVAILABLE")


def _pod(thing: Mapping[str, Any]) -> Pod:
    metadata = thing["metadata"]
    return Pod(
        metadata["name"],
        metadata["uid"],
        dict(metadata.get("annotations") or {}),
        leaving=bool(metadata.get("deletionTimestamp")),
    )
