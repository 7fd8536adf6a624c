"""Kubernetes' API for pods of a namespace, over a real socket: list, watch and merge-patch, with uids and versions."""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route


class KubernetesApi:
    """The API server.

    Attributes:
        patches: Patches that were carried out: of which pod, and which annotations.
        delay: Seconds from a patch's arrival to its effect.
        fails: Whether patches are answered with an error.
        page: Pods of one page of a list.
    """

    def __init__(self, token: str) -> None:
        self._token = token
        self._pods: dict[str, dict[str, Any]] = {}
        self._events: list[tuple[int, dict[str, Any]]] = []
        self._version = 0
        self._forgotten = 0
        self._changed = asyncio.Condition()
        self.patches: list[tuple[str, dict[str, Any]]] = []
        self.lists = 0
        self.delay = 0.0
        self.fails = False
        self.page = 2
        self.url = ""

    async def put(self, name: str, **annotations: str) -> None:
        """Have a pod, whose annotations are given with `__` for `/` and `_` for `-`."""
        self._version += 1
        spelled = {key.replace("__", "/").replace("_", "-"): value for key, value in annotations.items()}
        pod = {
            "metadata": {
                "name": name,
                "uid": f"uid-{name}-{self._version}",
                "labels": {"atelier.io/worker": "true"},
                "annotations": spelled,
                "resourceVersion": str(self._version),
            }
        }
        self._pods[name] = pod
        await self._tell("ADDED", pod)

    async def remove(self, name: str) -> None:
        self._version += 1
        await self._tell("DELETED", self._pods.pop(name))

    async def forget(self) -> None:
        """Forget all versions, and end the watches: clients have to list again."""
        self._version += 1
        self._forgotten = self._version
        await self._tell("ERROR", {"kind": "Status", "code": 410})

    def annotations(self, name: str) -> dict[str, str]:
        return dict(self._pods[name]["metadata"]["annotations"])

    async def _tell(self, kind: str, thing: dict[str, Any]) -> None:
        async with self._changed:
            self._events.append((self._version, {"type": kind, "object": json.loads(json.dumps(thing))}))
            self._changed.notify_all()

    def _refusal(self, request: Request) -> Response | None:
        if request.headers.get("authorization") != f"Bearer {self._token}":
            return JSONResponse({"kind": "Status", "code": 401}, 401)
        return None

    async def _get(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        if request.query_params.get("labelSelector") != "atelier.io/worker=true":
            return JSONResponse({"kind": "Status", "code": 400}, 400)
        if request.query_params.get("watch") == "true":
            version = int(request.query_params["resourceVersion"])
            if version < self._forgotten:
                return JSONResponse({"kind": "Status", "code": 410}, 410)
            return StreamingResponse(self._watch(version), media_type="application/json")
        begin = int(request.query_params.get("continue", "0"))
        names = sorted(self._pods)
        metadata = {"resourceVersion": str(self._version)}
        if begin + self.page < len(names):
            metadata["continue"] = str(begin + self.page)
        else:
            self.lists += 1
        return JSONResponse(
            {
                "kind": "PodList",
                "metadata": metadata,
                "items": [self._pods[n] for n in names[begin : begin + self.page]],
            }
        )

    async def _watch(self, version: int) -> AsyncIterator[bytes]:
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(version)}}}
        yield json.dumps(bookmark).encode() + b"\n"
        told = sum(1 for at, _ in self._events if at <= version)
        while True:
            async with self._changed:
                while len(self._events) <= told:
                    await self._changed.wait()
                fresh = [event for _, event in self._events[told:]]
                told = len(self._events)
            for event in fresh:
                yield json.dumps(event).encode() + b"\n"
                if event["type"] == "ERROR":
                    return

    async def _patch(self, request: Request) -> Response:
        if (refusal := self._refusal(request)) is not None:
            return refusal
        assert request.headers["content-type"] == "application/merge-patch+json"
        patch = (await request.json())["metadata"]
        await asyncio.sleep(self.delay)
        name = request.path_params["name"]
        pod = self._pods.get(name)
        if self.fails:
            return JSONResponse({"kind": "Status", "code": 500}, 500)
        if pod is None:
            return JSONResponse({"kind": "Status", "code": 404}, 404)
        if pod["metadata"]["uid"] != patch["uid"]:
            return JSONResponse({"kind": "Status", "code": 409}, 409)
        merged = {**pod["metadata"]["annotations"], **patch["annotations"]}
        pod["metadata"]["annotations"] = {key: value for key, value in merged.items() if value is not None}
        self._version += 1
        pod["metadata"]["resourceVersion"] = str(self._version)
        self.patches.append((name, patch["annotations"]))
        await self._tell("MODIFIED", pod)
        return JSONResponse(pod)

    @contextlib.asynccontextmanager
    async def serving(self, certificate: Path, key: Path) -> AsyncIterator[None]:
        """Serve by TLS."""
        path = "/api/v1/namespaces/atelier/pods"
        app = Starlette(
            routes=[
                Route(path, self._get, methods=["GET"]),
                Route(f"{path}/{{name}}", self._patch, methods=["PATCH"]),
            ]
        )
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.url = f"https://127.0.0.1:{listener.getsockname()[1]}"
            config = uvicorn.Config(
                app,
                log_config=None,
                lifespan="off",
                ssl_certfile=certificate,
                ssl_keyfile=key,
                timeout_graceful_shutdown=1,
            )
            server = uvicorn.Server(config)
            server.install_signal_handlers = lambda: None  # type: ignore[attr-defined] # the test's own
            task = asyncio.create_task(server._serve(sockets=[listener]))  # `serve` takes the signals
            while not server.started:  # noqa: ASYNC110 -- the library tells by a flag
                await asyncio.sleep(0.01)
            try:
                yield
            finally:
                server.should_exit = True
                await self.forget()
                await task
