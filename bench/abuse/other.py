"""The other tenant, who does nothing wrong and waits for what the greedy one does."""

from __future__ import annotations

import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import httpx

_PROBE_SECONDS = 60.0
_LATER = frozenset({429, 502, 503, 504})


@dataclass
class OtherTenant:
    """One task after the other, and what each wait was.

    Attributes:
        url: The gateway it uses.
        headers: Of its requests.
        hook: Address of its receiver of webhooks.
        arrived: When the end of each task was told to that receiver.
        patient: Whether it repeats a call that is refused for now, under the same idempotency key.
        waits: Seconds of each wait.
        creates: Seconds of each create alone.
        refused: How many calls were refused for now.
        failures: What went wrong, counted.
    """

    url: str
    headers: Mapping[str, str]
    hook: str
    arrived: Mapping[str, float]
    patient: bool = False
    waits: list[float] = field(default_factory=list)
    creates: list[float] = field(default_factory=list)
    refused: int = 0
    failures: Counter[str] = field(default_factory=Counter)

    def forget(self) -> None:
        """Forget the waits so far."""
        self.waits.clear()
        self.creates.clear()
        self.refused = 0

    def once(self, probe: str) -> None:
        """Create a task and wait for its end, as `probe` says."""
        began = time.monotonic()
        try:
            with httpx.Client(base_url=self.url, headers=self.headers, timeout=_PROBE_SECONDS) as client:
                self._wait(client, probe, began)
        except (httpx.HTTPError, TimeoutError) as error:
            self.failures[str(error)[:60] or type(error).__name__] += 1
        self.waits.append(time.monotonic() - began)

    def _wait(self, client: httpx.Client, probe: str, began: float) -> None:
        path, body = self._request(probe)
        key = {"Idempotency-Key": str(uuid.uuid4())}
        ident = str(self._ask(lambda: client.post(path, json=body, headers=key), began).json()["id"])
        self.creates.append(time.monotonic() - began)
        if probe == "stream":
            with client.stream("GET", f"/api/v1/tasks/{ident}/events") as stream:
                stream.raise_for_status()
                for _ in stream.iter_lines():
                    pass
            return
        while time.monotonic() - began < _PROBE_SECONDS:
            if probe == "webhook" and ident in self.arrived:
                return
            if probe != "webhook":
                found = self._ask(lambda: client.get(f"{path}{ident}"), began).json()
                if found["status"] == "COMPLETED":
                    return
            time.sleep(0.02)
        message = f"no end within {_PROBE_SECONDS:.0f} s"
        raise TimeoutError(message)

    def _request(self, probe: str) -> tuple[str, dict[str, object]]:
        """Return where something is created, and its body."""
        if probe == "workflow":
            steps = [
                {"id": name, "task_type": "NOOP", "depends_on": needs, "config": {"steps": 0}}
                for name, needs in (("first", []), ("second", ["first"]))
            ]
            return "/api/v1/workflows/", {"name": "probe", "origin_instance": "bench", "steps": steps}
        body = {"task_type": "NOOP", "origin_instance": "bench", "steps": 0, "webhook_url": self.hook}
        return "/api/v1/tasks/", body

    def _ask(self, send: Callable[[], httpx.Response], began: float) -> httpx.Response:
        """Send a request; where the tenant is patient, again until it is not refused for now."""
        while True:
            try:
                answer = send()
            except httpx.TransportError:
                if not self.patient or time.monotonic() - began > _PROBE_SECONDS:
                    raise
            else:
                later = self.patient and answer.status_code in _LATER
                if not later or time.monotonic() - began > _PROBE_SECONDS:
                    return answer.raise_for_status()
            self.refused += 1
            time.sleep(0.1)
