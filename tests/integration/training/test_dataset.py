"""Datasets from pictures in a store, by the child that works on them."""

import asyncio
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import psutil
import pytest
from PIL import Image, ImageCms
from structlog.testing import capture_logs

from meshkit.errors import ErrorKind, MeshError, not_found, unavailable
from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.objects import ObjectStore
from meshkit.worker.inputs import Inputs
from meshkit.worker.lora_cache import LoraCache
from modelkit.training.dataset import Dataset
from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from services.training.trainer.dataset.domain import (
    DatasetFailed,
    DatasetRefused,
    DatasetRequest,
    MadeDataset,
    StageReport,
)
from services.training.trainer.dataset.making import CaptionWriter, make_dataset
from services.training.trainer.dataset.preparing import PictureChildLostError, PictureWork
from services.training.trainer.dataset.transforms import parse_transforms

PHOTO = Path(__file__).parents[2] / "unit" / "modelkit" / "data" / "astronaut.jpg"


class Store:
    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.away = False

    async def copy_into(self, _tenant: str, path: str, file: BinaryIO, _max_bytes: int) -> None:
        if self.away:
            raise unavailable("away")
        if path not in self.objects:
            raise not_found("Object", path)
        file.write(self.objects[path])


def saved(image: Image.Image, kind: str = "PNG", **more: Any) -> bytes:
    content = io.BytesIO()
    image.save(content, kind, **more)
    return content.getvalue()


def drawn(seed: int, garment: str = "dress", size: int = 96) -> Image.Image:
    return Image.fromarray(
        draw(GarmentFacts(garment, "red", "dots", "blue"), np.random.default_rng(seed), size).picture
    )


class Maker:
    """Makes datasets of what the store has."""

    def __init__(self, folder: Path) -> None:
        self.store = Store()
        self.reports: list[StageReport] = []
        self.folder = folder
        self.checks = ImageChecks()
        objects = cast("ObjectStore", self.store)
        loras = LoraCache(objects, folder / "loras", max_bytes=1000, max_file_bytes=1000)
        self.inputs = Inputs(objects, Fetcher(), loras, self.checks, max_bytes=1 << 20, timeout_seconds=30)
        self.made = 0
        self.validating = asyncio.Event()

    async def report(self, report: StageReport) -> None:
        self.reports.append(report)
        if report.stage == "validating":
            self.validating.set()

    async def make(
        self,
        sources: Sequence[str],
        *,
        work: PictureWork | None = None,
        captions: CaptionWriter | None = None,
        **more: Any,
    ) -> MadeDataset:
        self.made += 1
        request = DatasetRequest(tuple(sources), "ohwx", 64, 16, **more)
        return await make_dataset(
            request,
            self.out,
            tenant="acme",
            inputs=self.inputs,
            report=self.report,
            work=work or PictureWork(threads=1),
            captions=captions,
            pause_seconds=0,
        )

    @property
    def out(self) -> Path:
        return self.folder / f"dataset-{self.made}"

    @property
    def manifest(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "manifest.json").read_text()))

    @property
    def dataset(self) -> dict[str, Any]:
        return dict(json.loads((self.out / "dataset.json").read_text()))


@pytest.fixture
async def maker(tmp_path: Path) -> Any:
    made = Maker(tmp_path)
    yield made
    await made.checks.close()


async def test_pictures_become_a_dataset_and_every_reject_is_named(maker: Maker) -> None:
    first = drawn(1)
    maker.store.objects = {
        "in/first.png": saved(first),
        "in/wide.jpg": saved(drawn(2).resize((160, 96)), "JPEG", quality=90),
        "in/copy.jpg": saved(first.resize((80, 80)), "JPEG", quality=85),
        "in/small.png": saved(drawn(3).resize((20, 20))),
        "in/broken.png": saved(drawn(4))[:-30],
        "in/notes.txt.png": b"these are my notes",
        "in/clear.png": saved(Image.new("RGBA", (64, 64), (255, 0, 0, 0))),
    }
    sources = [*maker.store.objects, "in/missing.png", "http://127.0.0.1/private.png"]
    made = await maker.make(sources)
    assert {one.name: one.reason for one in made.rejects} == {
        "copy.jpg": "shows the same picture as first.png",
        "small.png": "cannot be used: 20 x 20 pixels are too few for 64 x 64",
        "broken.png": "is damaged: it cannot be decoded",
        "notes.txt.png": made.rejects[3].reason,
        "missing.png": "There is no such image in storage",
        "private.png": made.rejects[5].reason,
    }
    assert "image" in made.rejects[3].reason
    manifest, dataset = maker.manifest, maker.dataset
    assert [one["name"] for one in manifest["pictures"]] == ["first.png", "wide.jpg", "clear.png"]
    assert [tuple(one["bucket"]) for one in manifest["pictures"]] == [(64, 64), (80, 48), (64, 64)]
    assert manifest["buckets"] == [
        {"width": 64, "height": 64, "count": 2},
        {"width": 80, "height": 48, "count": 1},
    ]
    assert [one["reason"] for one in manifest["rejects"]] == [one.reason for one in made.rejects]
    assert manifest["pictures"][1]["source"] == "in/wide.jpg"
    assert dataset["hash"] == manifest["hash"] == made.hash
    assert Dataset.read(maker.out / "dataset.json").hash == made.hash, "the trainer finds the same hash"
    assert made.pictures == len(dataset["examples"]) == 3
    for example, shown in zip(dataset["examples"], manifest["pictures"], strict=True):
        assert example["caption"] == shown["caption"] == "ohwx"
        with Image.open(maker.out / example["image"]) as image, Image.open(maker.out / shown["thumbnail"]) as small:
            assert (image.mode, image.format, image.size) == ("RGB", "PNG", tuple(example["bucket"]))
            assert (small.format, max(small.size) <= 256) == ("WEBP", True)
    with Image.open(maker.out / dataset["examples"][2]["image"]) as clear:
        assert clear.getpixel((5, 5)) == (255, 255, 255)
    written = {file.relative_to(maker.out).as_posix() for file in maker.out.rglob("*") if file.is_file()}
    assert written == set(made.files), "nothing else is left"


async def test_each_stage_is_counted_in_its_order(maker: Maker) -> None:
    maker.store.objects = {f"in/{n}.png": saved(drawn(n)) for n in range(3)} | {"in/bad.png": b"no"}
    await maker.make(list(maker.store.objects))
    stages = list(dict.fromkeys(one.stage for one in maker.reports))
    assert stages == ["downloading", "validating", "transforming", "captioning"]
    last = {one.stage: (one.processed, one.total) for one in maker.reports}
    assert last == {"downloading": (4, 4), "validating": (3, 3), "transforming": (3, 3), "captioning": (3, 3)}
    assert [one.name for one in maker.reports[-1].rejects] == ["bad.png"]


async def test_a_dataset_made_again_is_the_same(maker: Maker) -> None:
    maker.store.objects = {f"in/{n}.png": saved(drawn(n)) for n in range(3)}
    transforms = parse_transforms([{"type": "flip"}, {"type": "color_jitter"}])
    first = await maker.make(list(maker.store.objects), transforms=transforms)
    again = await maker.make(list(maker.store.objects), transforms=transforms)
    assert first == again
    assert first.pictures == 12
    other = await maker.make(list(maker.store.objects), transforms=transforms, seed=7)
    assert other.hash != first.hash
    labels = [one["variant"] for one in maker.manifest["pictures"][:4]]
    assert labels == ["", "jittered 1", "flipped", "flipped, jittered 1"]


async def test_pictures_are_upright_in_srgb(maker: Maker) -> None:
    turned = Image.new("RGB", (96, 64), (200, 30, 40))
    turned.paste((40, 60, 200), (0, 0, 20, 64))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held upright
    grey = Image.new("LAB", (64, 64), (140, 128, 128))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    maker.store.objects = {
        "turned.jpg": saved(turned, "JPEG", exif=exif, quality=95),
        "lab.tiff": saved(grey, "TIFF", icc_profile=profile),
    }
    await maker.make(["turned.jpg", "lab.tiff"])
    upright, plain = maker.dataset["examples"]
    assert upright["bucket"] == [48, 80]
    with Image.open(maker.out / upright["image"]) as image:
        red, _, blue = cast("tuple[int, ...]", image.getpixel((24, 4)))
        assert blue > red, "the left edge of the file is the upper edge of the picture"
    with Image.open(maker.out / plain["image"]) as image:
        levels = cast("tuple[int, ...]", image.getpixel((30, 30)))
    assert max(levels) - min(levels) <= 3
    assert 120 < levels[0] < 145


async def test_captions_say_what_is_seen(maker: Maker) -> None:
    maker.store.objects = {
        "dress.png": saved(drawn(1, "dress", 128)),
        "boot.png": saved(drawn(1, "boot", 128)),
        "person.jpg": PHOTO.read_bytes(),
    }
    await maker.make(list(maker.store.objects), strategy="auto")
    captions = [one["caption"] for one in maker.dataset["examples"]]
    assert captions[0].startswith("ohwx, a red")
    assert "dress" in captions[0]
    assert "boot" in captions[1]
    assert "person" in captions[2]
    assert maker.manifest["described_by"] == "local"


class Service:
    """Describes the first picture that it is shown, and no other."""

    model = "sees"

    def __init__(self) -> None:
        self.shown: list[tuple[int, int]] = []

    async def describe(self, picture: Path) -> str | None:
        with Image.open(picture) as image:
            self.shown.append(image.size)
        return "a dress of [trigger] silk" if len(self.shown) == 1 else None


async def test_a_service_writes_captions_and_the_mesh_those_that_are_left(maker: Maker) -> None:
    maker.store.objects = {"dress.png": saved(drawn(1, "dress", 128)), "bag.png": saved(drawn(2, "bag", 128))}
    service = Service()
    await maker.make(list(maker.store.objects), strategy="auto", captions=service)
    captions = [one["caption"] for one in maker.dataset["examples"]]
    assert captions[0] == "a dress of ohwx silk"
    assert captions[1].startswith("ohwx, a red")
    assert service.shown == [(128, 128)] * 2, "it is shown more than the model is trained on"
    assert maker.manifest["described_by"] == "sees"


async def test_masks_lie_on_what_counts(maker: Maker) -> None:
    maker.store.objects = {"dress.png": saved(drawn(1)), "empty.png": saved(Image.new("RGB", (64, 64), "white"))}
    await maker.make(list(maker.store.objects), masks="garment")
    dress, empty = maker.manifest["pictures"]
    with Image.open(maker.out / dress["mask"]) as mask:
        assert (mask.mode, mask.size) == ("L", (64, 64))
        assert (mask.getpixel((32, 40)), mask.getpixel((2, 2))) == (255, 0)
    assert empty["mask"] is None
    assert empty["warnings"] == ["no garment was found in it: all of it counts"]


async def test_none_left_is_a_refusal_that_names_all(maker: Maker) -> None:
    maker.store.objects = {"a.png": b"no", "b.png": saved(Image.new("RGB", (8, 8)))}
    with pytest.raises(DatasetRefused) as caught:
        await maker.make(["a.png", "b.png"])
    assert "a.png" in caught.value.message
    assert "b.png cannot be used: 8 x 8 pixels are too few" in caught.value.message
    assert [one.name for one in caught.value.rejects] == ["a.png", "b.png"]


async def test_a_crop_that_leaves_too_little_is_a_reject(maker: Maker) -> None:
    maker.store.objects = {"a.png": saved(drawn(1))}
    transforms = parse_transforms([{"type": "center_crop", "size": 16}])
    with pytest.raises(DatasetRefused, match="after its transforms, 16 x 16 pixels are too few"):
        await maker.make(["a.png"], transforms=transforms)


async def test_a_store_that_is_away_is_no_fault_of_the_pictures(maker: Maker) -> None:
    maker.store.away = True
    with pytest.raises(MeshError) as caught:
        await maker.make(["a.png"])
    assert caught.value.kind is ErrorKind.UNAVAILABLE


class Losing(PictureWork):
    """Loses its first child over the second picture."""

    def __init__(self) -> None:
        super().__init__(threads=1)
        self.lost = False

    async def _events(self, job: dict[str, Any], work: Path) -> Any:
        async for event in super()._events(job, work):
            yield event
            if not self.lost and (event["event"], event.get("index")) == ("begun", 1):
                self.lost = True
                raise PictureChildLostError(1, "it is damaged, or needs too much memory")


async def test_a_picture_that_a_child_dies_of_is_rejected_and_the_others_are_used(maker: Maker) -> None:
    maker.store.objects = {f"in/{n}.png": saved(drawn(n)) for n in range(3)}
    made = await maker.make(list(maker.store.objects), work=Losing())
    assert [(one.name, one.reason) for one in made.rejects] == [
        ("1.png", "cannot be worked on: it is damaged, or needs too much memory")
    ]
    assert made.pictures == 2


async def test_a_package_that_the_child_lacks_is_told_and_no_picture_is_blamed(
    maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lacking = tmp_path / "lacking"
    lacking.mkdir()
    (lacking / "numpy.py").write_text("raise ModuleNotFoundError(\"No module named 'numpy'\")\n")
    monkeypatch.setenv("PYTHONPATH", str(lacking))
    maker.store.objects = {"a.png": saved(drawn(1))}
    with capture_logs() as logs, pytest.raises(DatasetFailed, match="this worker's log tells why"):
        await maker.make(["a.png"])
    [lost] = [line for line in logs if line["event"] == "dataset_child_lost"]
    assert lost["last_error"] == "ModuleNotFoundError: No module named 'numpy'"
    assert lost["cause"] == "the process cannot work here"


async def test_a_package_that_is_missed_over_a_picture_rejects_none(maker: Maker) -> None:
    class Lacking(PictureWork):
        async def _events(self, job: dict[str, Any], work: Path) -> Any:
            yield {"event": "begun", "index": 0}
            raise PictureChildLostError(0, "it is damaged, or needs too much memory", "ImportError: libGL.so.1")

    maker.store.objects = {"a.png": saved(drawn(1))}
    with pytest.raises(DatasetFailed, match="this worker's log tells why"):
        await maker.make(["a.png"], work=Lacking())


async def test_a_child_that_says_nothing_is_the_workers_failure(maker: Maker) -> None:
    maker.store.objects = {"a.png": saved(drawn(1))}
    with pytest.raises(DatasetFailed, match="could not be worked on"):
        await maker.make(["a.png"], work=PictureWork(threads=1, seconds=0))


async def test_a_cancelled_making_leaves_no_process_and_no_work(maker: Maker) -> None:
    maker.store.objects = {f"in/{n}.png": saved(drawn(n)) for n in range(8)}
    making = asyncio.create_task(maker.make(list(maker.store.objects), strategy="auto"))
    await maker.validating.wait()
    making.cancel()
    with pytest.raises(asyncio.CancelledError):
        await making
    children = [" ".join(one.cmdline()) for one in psutil.Process().children(recursive=True)]
    assert not [line for line in children if "dataset.child" in line]
    assert not (maker.out / ".work").exists()


def peak_bytes(folder: Path, count: int) -> int:
    """Return the most memory that the child held while it prepared so many pictures."""
    lots = np.random.default_rng(0)
    (folder / "out").mkdir(parents=True)
    pictures = []
    for index in range(count):
        file = folder / f"{index}.jpg"
        colours = lots.integers(0, 256, (20, 20, 3), np.uint8)
        Image.fromarray(colours).resize((2400, 2400), Image.Resampling.BICUBIC).save(file, quality=60)
        pictures.append({"index": index, "name": file.name, "file": str(file)})
    job = {
        "work": "prepare", "folder": str(folder / "out"), "threads": 1, "resolution": 64, "multiple": 16,
        "max_side": 64, "most_enlarged": 2, "transforms": [{"type": "flip"}], "masks": "none", "looks": True,
        "seed": 1, "pictures": pictures,
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    arguments = [sys.executable, "-m", "services.training.trainer.dataset.child", str(folder / "job.json")]
    child = subprocess.Popen(
        [*arguments, "--parent", str(os.getpid()), "--memory", str(4 << 30)], stdout=subprocess.DEVNULL
    )
    _, status, used = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    assert child.returncode == 0
    assert len(list((folder / "out" / "images").iterdir())) == 2 * count
    return used.ru_maxrss * 1024


def test_many_pictures_take_no_more_memory_than_one(tmp_path: Path) -> None:
    one, many = peak_bytes(tmp_path / "one", 1), peak_bytes(tmp_path / "many", 5)
    assert many - one < 2 * 2400 * 2400 * 3, "four more pictures, of which two together were never held"
