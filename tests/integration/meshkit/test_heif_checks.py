"""Broken and hostile HEIC pictures in the children that decode: an error of that picture each, and nothing more."""

import random
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from meshkit.errors import ErrorKind, MeshError
from meshkit.images.checks import ImageChecks
from tests.heif import claiming, heic, original, shown

pytestmark = pytest.mark.timeout(300)

_WRONG = {"image_broken", "image_format", "image_size", "image_memory"}
MIB = 1024 * 1024


@pytest.fixture
async def checks() -> AsyncIterator[ImageChecks]:
    checks = ImageChecks(seconds=120, wait_seconds=120)  # a busy machine takes its time
    yield checks
    await checks.close()


async def test_a_photo_is_made_for_work(checks: ImageChecks, tmp_path: Path) -> None:
    into = tmp_path / "made.png"
    work = await checks.make_for_work("acme", heic("turned"), into)
    assert (work.made, work.info.format, work.info.content_type) == (True, "HEIF", "image/heif")
    assert shown(into.read_bytes()).size == original().size


@pytest.mark.parametrize("name", ["portrait", "album", "ten-bit"])
async def test_damage_anywhere_is_at_most_the_pictures_own(checks: ImageChecks, name: str) -> None:
    drawn = random.Random(name)
    told: list[MeshError] = []
    for _ in range(40):
        data = bytearray(heic(name))
        # The header above all: it says where everything is and how large.
        last = drawn.choice([900, len(data)])
        for _ in range(drawn.randint(1, 8)):
            data[drawn.randrange(min(last, len(data)))] = drawn.choice([0, 1, 0x7F, 0x80, 0xFF, drawn.randrange(256)])
        try:
            await checks.check("acme", bytes(data))
        except MeshError as error:
            told.append(error)
    assert {error.kind for error in told} == {ErrorKind.INVALID}
    assert {one.type for error in told for one in error.violations} <= _WRONG
    assert (await checks.check("acme", heic(name))).width == 220


async def test_a_part_and_a_false_size_are_refused_by_one_child_that_lives_on(checks: ImageChecks) -> None:
    await checks.check("acme", heic())
    [child] = checks.pids
    for data in (heic()[:4000], heic("album")[:-1], claiming(60_000, 60_000), claiming(64, 64), claiming(8192, 8192)):
        with pytest.raises(MeshError) as caught:
            await checks.check("acme", data)
        assert {one.type for one in caught.value.violations} <= _WRONG
    await checks.check("acme", heic())
    assert child in checks.pids
    assert psutil.Process(child).memory_info().rss < 200 * MIB
