import base64
import io
from pathlib import Path

import pytest
from PIL import Image
from pydantic import ValidationError

from services.training.trainer.dataset.caption_service import CaptionService
from services.training.trainer.dataset.config import CaptionSettings
from tests.providers import base
from tests.providers.base import Misbehaviour, Reply
from tests.providers.openai import OpenAiServer


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "look.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


async def described(server: OpenAiServer, picture: Path, key: str | None = None, seconds: float = 60) -> str | None:
    settings = CaptionSettings(
        caption_url=f"{server.url}/v1/",
        caption_key=server.key if key is None else key,
        caption_model="sees",
        caption_seconds=seconds,
    )
    service = CaptionService.from_settings(settings)
    assert service is not None
    try:
        return await service.describe(picture)
    finally:
        await service.close()


async def test_a_service_is_shown_the_picture_and_says_one_sentence(picture: Path) -> None:
    async with OpenAiServer() as server:
        server.text = '"A red dress\n on white."\n'
        assert await described(server, picture) == "A red dress on white."
    (body,) = server.bodies
    text, shown = body["messages"][0]["content"]
    assert "one plain sentence" in text["text"]
    data = base64.b64decode(shown["image_url"]["url"].removeprefix("data:image/png;base64,"))
    with Image.open(io.BytesIO(data)) as image:
        assert image.size == (8, 8)
    assert body["model"] == "sees"


async def test_a_service_that_has_too_much_to_do_is_asked_again(picture: Path) -> None:
    async with OpenAiServer() as server:
        server.misbehave(Misbehaviour("busy", reply=Reply.of({}, 429, retry_after="0")), times=2)
        assert await described(server, picture) == "A red dress."
    assert len(server.asked) == 3


@pytest.mark.parametrize(
    "misbehaviour",
    [base.CUT_READ, base.CUT_HALF, base.BROKEN, base.NO_JSON, base.HTML, base.REDIRECT, base.SLOW, base.FORBIDDEN],
    ids=str,
)
async def test_what_may_have_been_paid_for_is_asked_once(picture: Path, misbehaviour: Misbehaviour) -> None:
    async with OpenAiServer() as server:
        server.misbehave(misbehaviour)
        assert await described(server, picture, seconds=2) is None
    assert len(server.asked) == 1


async def test_a_service_that_cannot_be_reached_says_nothing(picture: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.training.trainer.dataset.caption_service._PAUSE_SECONDS", 0.0)
    server = OpenAiServer()
    async with server:
        pass
    assert await described(server, picture) is None


async def test_a_refusal_and_an_empty_answer_say_nothing(picture: Path) -> None:
    async with OpenAiServer() as server:
        server.refusal = "No."
        assert await described(server, picture) is None
        server.refusal, server.text = "", "  "
        assert await described(server, picture) is None


def test_without_an_address_there_is_no_service_and_a_bad_one_is_refused() -> None:
    assert CaptionService.from_settings(CaptionSettings()) is None
    for address in ("ftp://host", "https://user@host/v1", "nonsense"):
        with pytest.raises(ValidationError):
            CaptionSettings(caption_url=address)
