"""The providers that a whole mesh calls in tests, and the environment by which it does."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

from tests.providers.fal import FalServer
from tests.providers.fashn import FashnServer
from tests.providers.freepik import FreepikServer
from tests.providers.gemini import GeminiServer
from tests.providers.ollama import OllamaServer


@dataclass(frozen=True)
class CalledProviders:
    """Servers of providers, each in a thread of its own."""

    fal: FalServer
    fashn: FashnServer
    freepik: FreepikServer
    gemini: GeminiServer
    ollama: OllamaServer

    @property
    def environment(self) -> dict[str, str]:
        """Credentials and addresses, as `atelier up` takes them."""
        return {
            "ATELIER_FAL_URL": self.fal.url,
            "ATELIER_FAL_KEY": self.fal.key,
            "ATELIER_FASHN_URL": self.fashn.url,
            "ATELIER_FASHN_KEY": self.fashn.key,
            "ATELIER_FREEPIK_URL": self.freepik.url,
            "ATELIER_FREEPIK_KEY": self.freepik.key,
            "ATELIER_GEMINI_URL": self.gemini.url,
            "ATELIER_GEMINI_KEY": self.gemini.key,
            "ATELIER_OLLAMA_URL": self.ollama.url,
            "ATELIER_FETCH_ALLOW_PRIVATE": f"{self.fal.host},{self.fashn.host},{self.freepik.host}",
            "ATELIER_PROVIDER_POLL_SECONDS": "0.2",
            "ATELIER_WORKER_CALLS": "64",
        }


@contextlib.contextmanager
def called_providers() -> Iterator[CalledProviders]:
    """Start them."""
    with (
        FalServer().in_thread() as fal,
        FashnServer().in_thread() as fashn,
        FreepikServer().in_thread() as freepik,
        GeminiServer().in_thread() as gemini,
        OllamaServer().in_thread() as ollama,
    ):
        fashn.looks = freepik.looks = 1
        yield CalledProviders(fal, fashn, freepik, gemini, ollama)
