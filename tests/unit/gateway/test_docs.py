"""The page's assets."""

import re

import pytest
from starlette.requests import Request

from meshkit.errors import MeshError
from services.gateway.docs import Docs


def asking(name: str) -> Request:
    return Request({"type": "http", "method": "GET", "path": "/", "headers": [], "path_params": {"name": name}})


async def test_the_page_asks_for_nothing_that_does_not_ship_with_it() -> None:
    docs = Docs()
    page = bytes((await docs.page(asking(""))).body).decode()
    for name in re.findall(r'(?:src|href)="/docs/([^"]+)"', page):
        asset = await docs.asset(asking(name))
        assert asset.status_code == 200
        assert not re.search(r"https?://(?!www\.w3\.org)", bytes(asset.body).decode()), name
    assert not re.search(r"https?://", page)


@pytest.mark.parametrize("name", ["nothing.js", "../config.py", "__init__.py", ""])
async def test_nothing_else_is_served(name: str) -> None:
    with pytest.raises(MeshError):
        await Docs().asset(asking(name))


async def test_assets_have_their_types_and_a_policy() -> None:
    asset = await Docs().asset(asking("docs.js"))
    assert asset.headers["content-type"] == "text/javascript; charset=utf-8"
    assert "script-src 'self'" in asset.headers["content-security-policy"]
