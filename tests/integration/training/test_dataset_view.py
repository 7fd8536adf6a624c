"""What a training learns from is looked at through the API: pictures, captions, sizes, and what was left out."""

import io
from pathlib import Path

import httpx
import numpy as np
from atelier.training.v1 import trainer_service_pb2
from PIL import Image

from meshkit.fetcher import Fetcher
from meshkit.images.checks import ImageChecks
from meshkit.worker.inputs import Inputs
from meshkit.worker.lora_cache import LoraCache
from models.garments.catalogue import GarmentFacts
from models.garments.draw import draw
from services.training.trainer.dataset.domain import DatasetRequest, StageReport
from services.training.trainer.dataset.making import make_dataset
from services.training.trainer.dataset.preparing import PictureWork
from services.training.trainer.prepared import files_of, images_of, rejects_of
from tests.integration.training.conftest import PATH, Mesh


def png(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


async def test_a_dataset_is_shown_with_thumbnails_captions_buckets_and_rejects(mesh: Mesh, tmp_path: Path) -> None:
    drawn = Image.fromarray(draw(GarmentFacts("dress", "red"), np.random.default_rng(1), 400).picture)
    other = Image.fromarray(draw(GarmentFacts("bag", "blue"), np.random.default_rng(2), 400).picture)
    await mesh.put("shop/dress.png", png(drawn))
    await mesh.put("shop/wide.png", png(other.resize((400, 240))))
    await mesh.put("shop/small.png", png(drawn.resize((20, 20))))
    sources = ["shop/dress.png", "shop/wide.png", "shop/small.png"]
    created = await mesh.create(source_images=sources)
    trainer = await mesh.trainer()
    ref, spec = await trainer.begin()

    async def report(told: StageReport) -> None:
        request = trainer_service_pb2.ReportStageRequest(
            ref=ref,
            stage=told.stage,
            processed_files=told.processed,
            total_files=told.total,
            rejects=rejects_of(told.rejects),
        )
        await trainer.reports.ReportStage(request)

    checks, objects = ImageChecks(), mesh.training.objects
    loras = LoraCache(objects, tmp_path / "loras", max_bytes=1, max_file_bytes=1)
    local, folder = tmp_path / "dataset", f"{spec.folder}dataset/{ref.attempt}/"
    try:
        made = await make_dataset(
            DatasetRequest(tuple(spec.training.source_images), "zorblat", 64, 16),
            local,
            tenant=spec.tenant,
            inputs=Inputs(objects, Fetcher(), loras, checks, max_bytes=1 << 20, timeout_seconds=5),
            report=report,
            work=PictureWork(threads=1),
        )
    finally:
        await checks.close()
    for file in files_of(made.files, local, folder):
        await mesh.training.objects.put(spec.tenant, file.path, file.local.read_bytes(), file.content_type)
    await trainer.reports.NoteDataset(
        trainer_service_pb2.NoteDatasetRequest(
            ref=ref,
            manifest_path=f"{folder}manifest.json",
            images=images_of(local, folder),
            rejects=rejects_of(made.rejects),
        )
    )

    shown = (await mesh.http().get(f"{PATH}{created['id']}/dataset")).json()
    assert [(one["name"], one["caption"], one["width"], one["height"]) for one in shown["images"]] == [
        ("dress.png", "zorblat", 64, 64),
        ("wide.png", "zorblat", 80, 48),
    ]
    assert shown["rejects"] == [
        {"name": "small.png", "reason": "cannot be used: 20 x 20 pixels are too few for 64 x 64"}
    ]
    assert shown["manifest_path"] == f"{folder}manifest.json"
    async with httpx.AsyncClient() as stranger:  # the addresses are signed: no token is needed
        for image in shown["images"]:
            small = await stranger.get(image["thumbnail_url"].replace("http://gateway.test", mesh.gateway))
            assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
            with Image.open(io.BytesIO(small.content)) as picture:
                assert picture.size == (image["width"], image["height"])
            whole = await stranger.get(image["url"].replace("http://gateway.test", mesh.gateway))
            assert whole.headers["content-type"] == "image/png"
    foreign = await mesh.http("umbra").get(f"{PATH}{created['id']}/dataset")
    assert foreign.status_code == 404
