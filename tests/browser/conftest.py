"""A real Chromium before a real gateway. Where there is none the tests are skipped and say so."""

import os
import shutil
from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, Page, async_playwright, expect

from tests.integration.gateway.conftest import mesh, start_mesh  # noqa: F401 -- fixtures of these tests too

# A machine that runs other tests beside these is slow; what never comes fails all the same.
expect.set_options(timeout=30_000)

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    """A headless Chromium: the system's, else the one that `playwright install chromium` fetched."""
    async with async_playwright() as playwright:
        found = next(filter(None, map(shutil.which, [*_NAMES, playwright.chromium.executable_path])), None)
        if found is None:
            pytest.skip("no Chromium on this machine: install the package chromium, or `playwright install chromium`")
        # Chromium's sandbox refuses to run as root, as which containers of tests often do.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        launched = await playwright.chromium.launch(executable_path=found, args=arguments)
        yield launched
        await launched.close()


@pytest.fixture
async def page(browser: Browser) -> AsyncIterator[Page]:
    """A page that may not complain: what its console says of errors fails the test."""
    opened = await browser.new_page(viewport={"width": 1280, "height": 900})
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on(
        "console",
        # An answer of 4xx, which tests ask for, is told here as well.
        lambda said: (
            complaints.append(said.text)
            if said.type == "error" and "Failed to load resource" not in said.text
            else None
        ),
    )
    yield opened
    assert not complaints
