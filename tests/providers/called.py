"""The providers that a whole mesh calls in tests, and the environment by which it does."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.providers.fashn import FashnServer
from tests.providers.freepik import FreepikServer


@dataclass(frozen=True)
class CalledProviders:
    """Servers of providers, each in a thread of its own."""

    fashn: FashnServer
    freepik: FreepikServer

    @property
    def environment(self) -> dict[str, str]:
        """Credentials and addresses, as `atelier up` takes them."""
        return {
            "ATELIER_FASHN_URL": self.fashn.url,
            "ATELIER_FASHN_KEY": self.fashn.key,
            "ATELIER_FREEPIK_URL": self.freepik.url,
            "ATELIER_FREEPIK_KEY": self.freepik.key,
            "ATELIER_FETCH_ALLOW_PRIVATE": f"{self.fashn.host},{self.freepik.host}",
            "ATELIER_PROVIDER_POLL_SECONDS": "0.2",
            "ATELIER_WORKER_CALLS": "64",
        }


@contextlib.contextmanager
def called_providers() -> Iterator[CalledProviders]:
    """Start them."""
    with FashnServer().in_thread() as fashn, FreepikServer().in_thread() as freepik:
        fashn.looks = freepik.looks = 1
        yield CalledProviders(fashn, freepik)
