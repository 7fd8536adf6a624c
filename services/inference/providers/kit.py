"""What the handlers of providers are given: settings, connections, and what makes files of answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from typing import Protocol, TypeVar, cast

from atelier.tasks.v1.enums_pb2 import TaskType

from meshkit.catalog import TASK_TYPES, type_name
from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from services.inference.providers.config import ProviderSettings
from services.inference.providers.http import ProviderHttp
from services.inference.providers.paid import Pacing
from services.inference.providers.results import ProviderResults
from services.inference.providers.wakes import ProviderWakes

# The worker ends an attempt at its type's limit: what is called off must have been before.
_MARGIN_SECONDS = 15.0


class Closing(Protocol):
    """A client that is closed at the end."""

    async def close(self) -> None:
        """Close it."""
        ...


_Client = TypeVar("_Client", bound=Closing)


class ProviderKit:
    """What all providers of one worker share.

    Args:
        settings: The worker's settings.
        results: Makes files of what providers answer.
        stack: Closes connections at the end.
        wakes: Tells of requests that may have ended.
    """

    def __init__(
        self, settings: ProviderSettings, results: ProviderResults, stack: AsyncExitStack, wakes: ProviderWakes
    ) -> None:
        self.settings = settings
        self.results = results
        self.wakes = wakes
        self._stack = stack
        self._connections: dict[tuple[str, str], ProviderHttp] = {}
        self._clients: dict[str, Closing] = {}
        self._making = threading.Lock()

    @classmethod
    def from_settings(
        cls,
        settings: ProviderSettings,
        checks: ImageChecks,
        stack: AsyncExitStack,
        wakes: ProviderWakes | None = None,
    ) -> ProviderKit:
        """Build what the settings describe.

        Args:
            settings: The worker's settings.
            checks: Judges pictures; the worker's own.
            stack: Closes connections at the end.
            wakes: Tells of requests that may have ended; nobody does where absent.
        """
        results = ProviderResults(
            Fetcher.from_settings(settings),
            checks,
            max_bytes=settings.provider_result_bytes,
            seconds=settings.provider_result_seconds,
        )
        return cls(settings, results, stack, wakes or ProviderWakes())

    def http(self, provider: str, base_url: str, headers: Mapping[str, str]) -> ProviderHttp:
        """Return the worker's connections to a provider; handlers of one provider share them.

        Args:
            provider: The provider's name, for sentences and logs.
            base_url: Its address.
            headers: What every request carries: the credentials.
        """
        key = provider, base_url
        if key not in self._connections:
            self._connections[key] = ProviderHttp(provider, base_url, headers, self.settings.provider_http)
            self._stack.push_async_callback(self._connections[key].close)
        return self._connections[key]

    def shared(self, name: str, make: Callable[[], _Client]) -> _Client:
        """Return the worker's one client of this name, made when it is asked for first; any thread may ask.

        Args:
            name: Its name.
            make: Makes it.
        """
        with self._making:
            if name not in self._clients:
                made = make()
                self._clients[name] = made
                self._stack.push_async_callback(made.close)
            return cast("_Client", self._clients[name])

    def seconds(self, task_type: TaskType.ValueType) -> float:
        """Return how long a provider may take for a request of a task of this type."""
        limit = TASK_TYPES[type_name(task_type)].timeout_seconds
        return self.settings.provider_wait_seconds or max(limit - _MARGIN_SECONDS, limit / 2)

    @property
    def pacing(self) -> Pacing:
        """How often a queued request is looked at."""
        return Pacing(last=self.settings.provider_poll_seconds, first=min(0.5, self.settings.provider_poll_seconds))
