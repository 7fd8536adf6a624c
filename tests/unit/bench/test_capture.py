"""The bench of capture: its figures, its photos, and what it hears."""

import asyncio
import io
import json
from typing import cast

from PIL import Image
from websockets.asyncio.client import ClientConnection

from bench.capture import CaptureTimes, heard, photo


def test_figures_are_a_row() -> None:
    figures = CaptureTimes([0.5, 0.3, 0.4, 2.0], 50_000_000, 55_400_000)
    assert figures.lines()[-1] == "| 4 | 0.45 | 2.00 | 2.00 | 50 | 55 |"


def test_each_photo_is_another_one_of_the_size_that_is_asked_for() -> None:
    first, second = (photo(number, (164, 205)) for number in (1, 2))
    assert first != second
    with Image.open(io.BytesIO(first)) as image:
        assert (image.format, image.size) == ("JPEG", (164, 205))


class Client:
    def __init__(self, *messages: dict[str, object]) -> None:
        self.messages = list(messages)

    async def recv(self) -> str:
        return json.dumps(self.messages.pop(0))


def test_a_detection_of_the_camera_is_heard_among_other_messages() -> None:
    client = Client(
        {"type": "camera.status_changed", "data": {"camera_id": "left"}},
        {"type": "detection.new", "data": {"camera_id": "right"}},
        {"type": "detection.new", "data": {"camera_id": "left"}},
        {"type": "detection.batch", "data": {"camera_id": "left"}},
    )
    asyncio.run(heard(cast("ClientConnection", client), "left"))
    assert [one["type"] for one in client.messages] == ["detection.batch"]
