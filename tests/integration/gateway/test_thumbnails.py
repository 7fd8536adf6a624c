"""Thumbnails of stored images, made by the real decoder."""

import io
from typing import Any

import pytest
from PIL import Image

from meshkit.images.checks import ImageChecks
from meshkit.objects import ObjectStore
from services.gateway.thumbnails import Thumbnails
from tests.conftest import S3Store
from tests.integration.gateway.conftest import IMAGES, Mesh, StartMesh, s3_options, save


def drawn(size: tuple[int, int] = (1200, 600), kind: str = "PNG", **options: Any) -> bytes:
    out = io.BytesIO()
    picture = Image.new("RGB", size, "red")
    picture.paste("blue", (0, 0, size[0] // 2, size[1]))
    picture.save(out, kind, **options)
    return out.getvalue()


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The widths that were decoded."""
    widths: list[int] = []
    make = ImageChecks.make_thumbnail

    async def counted(self: ImageChecks, tenant: str, source: Any, width: int, **more: Any) -> bytes:
        widths.append(width)
        return await make(self, tenant, source, width, **more)

    monkeypatch.setattr(ImageChecks, "make_thumbnail", counted)
    return widths


async def test_a_thumbnail_is_a_small_webp_that_is_made_once(stored: Mesh, decoded: list[int]) -> None:
    client = stored.client()
    await save(client, "looks/wide.png", drawn())
    address = f"{IMAGES}/looks/wide.png"
    whole = await client.get(address)
    for width in (256, 512, 256):
        small = await client.get(address, params={"w": width})
        assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
        with Image.open(io.BytesIO(small.content)) as image:
            assert (image.format, image.size) == ("WEBP", (width, width // 2))
            left, right = image.convert("RGB").getpixel((2, 2)), image.convert("RGB").getpixel((width - 3, 2))
            assert left[2] > 200 > 60 > left[0]  # type: ignore[index]  # a colour
            assert right[0] > 200 > 60 > right[2]  # type: ignore[index]  # a colour
        assert small.headers["etag"] == f'{whole.headers["etag"][:-1]}-w{width}"'
        head = await client.head(address, params={"w": width})
        assert (head.headers["content-length"], head.content) == (str(len(small.content)), b"")
    assert decoded == [256, 512]


async def test_who_has_a_thumbnail_is_told_so_until_the_image_changes(stored: Mesh, decoded: list[int]) -> None:
    client = stored.client()
    await save(client, "a.png", drawn())
    first = await client.get(f"{IMAGES}/a.png", params={"w": 256})
    known = {"if-none-match": first.headers["etag"]}
    again = await client.get(f"{IMAGES}/a.png", params={"w": 256}, headers=known)
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", first.headers["etag"])
    assert decoded == [256]
    other = await client.get(f"{IMAGES}/a.png", params={"w": 512}, headers=known)
    assert other.status_code == 200
    await save(client, "a.png", drawn((600, 600)))
    changed = await client.get(f"{IMAGES}/a.png", params={"w": 256}, headers=known)
    assert changed.status_code == 200
    with Image.open(io.BytesIO(changed.content)) as image:
        assert image.size == (256, 256)


async def test_a_turned_photo_stands_upright_and_a_small_one_is_not_enlarged(stored: Mesh) -> None:
    client = stored.client()
    exif = Image.Exif()
    exif[0x0112] = 6
    await save(client, "turned.jpg", drawn((80, 40), "JPEG", exif=exif))
    small = await client.get(f"{IMAGES}/turned.jpg", params={"w": 256})
    with Image.open(io.BytesIO(small.content)) as image:
        assert image.size == (40, 80)


async def test_a_signed_address_gives_a_thumbnail_as_well(stored: Mesh) -> None:
    client = stored.client()
    url = (await save(client, "a.png", drawn()))["url"]
    small = await client.get(url, params={"w": 512}, headers={"authorization": ""})
    assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
    assert "max-age" in small.headers["cache-control"]
    assert (await client.get(url, params={"w": 9}, headers={"authorization": ""})).status_code == 422


@pytest.mark.parametrize("asked", ["0", "255", "1024", "abc", "", "-256", "256.0"])
async def test_another_width_is_refused(stored: Mesh, asked: str) -> None:
    client = stored.client()
    await save(client, "a.png", drawn())
    refused = await client.get(f"{IMAGES}/a.png", params={"w": asked})
    assert refused.status_code == 422
    assert refused.json()["detail"][0]["loc"] == ["query", "w"]


async def test_a_film_and_what_is_no_image_have_none(start_mesh: StartMesh, s3: S3Store) -> None:
    options = s3_options(s3)
    client = (await start_mesh(**options)).client()
    store = ObjectStore(options["s3_endpoint"], s3.access_key, s3.secret_key, bucket=options["s3_bucket"])
    await store.put("acme", "film.mp4", b"\x00\x00\x00\x18ftypmp42", "video/mp4")
    await store.put("acme", "broken.png", drawn()[:400], "image/png")
    await store.close()
    for path, words in (("film.mp4", "a film"), ("broken.png", "damaged")):
        refused = await client.get(f"{IMAGES}/{path}", params={"w": 256})
        assert refused.status_code == 422
        assert words in refused.json()["detail"][0]["msg"]
    assert (await client.get(f"{IMAGES}/none.png", params={"w": 256})).status_code == 404


async def test_what_is_kept_is_bounded_and_the_oldest_goes_first() -> None:
    kept = Thumbnails(None, None, 10)  # type: ignore[arg-type]  # nothing is made here
    for name in "abc":
        kept._keep(("acme", name, "1"), b"12345")
    kept._keep(("acme", "large", "1"), b"x" * 11)
    assert [key[1] for key in kept._kept] == ["b", "c"]
