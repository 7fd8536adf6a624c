"""What is old, or too much, is forgotten; files only where that is wanted."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from services.monitoring.capture.analysis.rules import read_rules
from services.monitoring.capture.analysis.service import AnalysisWorker
from services.monitoring.capture.cleanup import service
from services.monitoring.capture.cleanup.files import PhotoFiles
from services.monitoring.capture.cleanup.service import CleanupService
from services.monitoring.capture.postgres.cleanup import PostgresForgettingStore
from services.monitoring.capture.postgres.events import PostgresEventStore
from tests.integration.capture.conftest import StartStudio, Studio
from tests.integration.capture.judged import DARK, PERSON, batch, quiet

_DAY = 86_400.0


@pytest.fixture
async def studio(start_studio: StartStudio) -> Studio:
    studio = await quiet(start_studio)
    (studio.root / "yard").mkdir()
    return studio


def cleanup(
    studio: Studio, *, deletes: bool = False, keep_bytes: int | None = None, runs: bool = False
) -> CleanupService:
    return CleanupService(
        PostgresForgettingStore(studio.capture.changes, runs=runs),
        PhotoFiles(studio.root, deletes=deletes),
        keep_days=30.0,
        keep_bytes=keep_bytes,
        interval_seconds=3600.0,
    )


async def judged(studio: Studio, name: str, age_days: float = 0.0) -> None:
    (studio.root / "yard" / name).write_bytes(b"x" * 100)
    await batch(studio, DARK, age_seconds=age_days * _DAY, files=[f"yard/{name}".encode()])
    worker = AnalysisWorker(
        PostgresEventStore(studio.capture.changes),
        read_rules("studio"),
        None,
        answer_seconds=60.0,
        webhook_url="",
        on_alerts=lambda: None,
    )
    await worker.run()
    await studio.rows(
        "UPDATE events SET created_at = b.started_at FROM batches b WHERE b.id = batch_id AND created_at > b.started_at"
    )


async def names(studio: Studio) -> list[tuple[str, bool]]:
    return [
        (path, bool(hidden))
        for path, hidden in await studio.rows("SELECT path, deleted_at IS NOT NULL FROM photos ORDER BY path")
    ]


async def test_what_is_old_is_forgotten_and_its_file_stays(studio: Studio) -> None:
    async with studio.listening() as client:
        await judged(studio, "old.jpg", 31)
        await judged(studio, "new.jpg", 29)
        await cleanup(studio).run()
        async with asyncio.timeout(60):
            told = [json.loads(await client.recv())["type"] for _ in range(3)]
    assert told == ["event.created", "event.created", "event.deleted"]
    assert await names(studio) == [("yard/new.jpg", False), ("yard/old.jpg", True)]
    assert (studio.root / "yard" / "old.jpg").exists()
    http = studio.http()
    for what in ("photos", "batches", "events"):
        assert (await http.get(f"/{what}")).json()["pagination"]["total"] == 1
    assert await studio.rows("SELECT findings FROM photos WHERE deleted_at IS NOT NULL") == [(None,)]
    # The row keeps its file from being a new photo, and goes with the file.
    (studio.root / "yard" / "old.jpg").unlink()
    await cleanup(studio).run()
    await cleanup(studio).run()
    assert await names(studio) == [("yard/new.jpg", False)]
    assert await studio.rows("SELECT count(*) FROM batches") == [(1,)]


async def test_files_are_deleted_where_that_is_wanted(studio: Studio) -> None:
    await judged(studio, "old.jpg", 31)
    await judged(studio, "changed.jpg", 31)
    (studio.root / "yard" / "changed.jpg").write_bytes(b"another photo")
    await cleanup(studio, deletes=True).run()
    assert await names(studio) == []
    assert not (studio.root / "yard" / "old.jpg").exists()
    assert (studio.root / "yard" / "changed.jpg").read_bytes() == b"another photo"
    assert await studio.rows("SELECT count(*) FROM events") == [(0,)]


async def test_no_file_beyond_the_root_is_deleted(studio: Studio) -> None:
    await judged(studio, "old.jpg", 31)
    outside = studio.root.parent / "outside"
    (studio.root / "yard").rename(outside)
    (studio.root / "yard").symlink_to(outside)
    (studio.root / "gate").mkdir()
    await cleanup(studio, deletes=True).run()
    assert (outside / "old.jpg").exists()


async def test_the_oldest_photos_beyond_the_bytes_that_are_kept_go(studio: Studio) -> None:
    for number in range(4):
        await judged(studio, f"{number}.jpg", 4 - number)
    await cleanup(studio, deletes=True, keep_bytes=250).run()
    assert await names(studio) == [("yard/2.jpg", False), ("yard/3.jpg", False)]
    assert await studio.rows("SELECT count(*) FROM events") == [(4,)]


async def test_a_photo_that_was_missed_and_came_anew_counts_once(studio: Studio) -> None:
    for number in range(3):
        await judged(studio, f"{number}.jpg", 4 - number)
    await studio.rows(
        "UPDATE photos SET state = 'FAILED', missed = true, error = 'gone', findings = NULL, detected_at = NULL "
        "WHERE path = 'yard/2.jpg'"
    )
    await cleanup(studio, deletes=True, keep_bytes=250).run()
    assert await names(studio) == [("yard/0.jpg", False), ("yard/1.jpg", False), ("yard/2.jpg", False)]


async def test_what_was_not_judged_yet_is_never_forgotten(studio: Studio) -> None:
    await batch(studio, None, age_seconds=60 * _DAY, state="closed")
    await batch(studio, PERSON, age_seconds=60 * _DAY, state="closed", camera="gate")
    await cleanup(studio, deletes=True, keep_bytes=0).run()
    assert await studio.rows("SELECT count(*) FROM photos WHERE deleted_at IS NULL") == [(2,)]


async def test_rows_of_files_that_are_only_out_of_reach_stay(studio: Studio) -> None:
    await judged(studio, "hidden.jpg", 31)
    await cleanup(studio).run()
    await judged(studio, "old.jpg", 31)
    aside = studio.root.with_name("aside")
    studio.root.rename(aside)
    for _ in range(2):
        await cleanup(studio, deletes=True).run()
        assert await names(studio) == [("yard/hidden.jpg", True), ("yard/old.jpg", False)]
        studio.root.mkdir(exist_ok=True)  # what is left where a drive is not mounted
    studio.root.rmdir()
    aside.rename(studio.root)
    # One that bears another time is the same file until the watcher has read it.
    os.utime(studio.root / "yard" / "hidden.jpg", (1, 1))
    await cleanup(studio).run()
    assert await names(studio) == [("yard/hidden.jpg", True), ("yard/old.jpg", True)]


async def test_a_photo_is_not_forgotten_before_its_workflow_has_ended(studio: Studio) -> None:
    await judged(studio, "old.jpg", 31)
    await studio.rows("INSERT INTO photo_runs (photo_id, stored_path, state) SELECT id, 'a.jpg', 'WAITING' FROM photos")
    await cleanup(studio, deletes=True, keep_bytes=0, runs=True).run()
    assert await names(studio) == [("yard/old.jpg", False)]
    await studio.rows("UPDATE photo_runs SET state = 'COMPLETED', ended_at = now()")
    await cleanup(studio, deletes=True, runs=True).run()
    assert await names(studio) == []


async def test_the_row_of_a_photo_that_was_missed_goes_alone(studio: Studio) -> None:
    await judged(studio, "again.jpg", 31)
    await studio.rows(
        "UPDATE photos SET state = 'FAILED', missed = true, error = 'gone', findings = NULL, detected_at = NULL"
    )
    await cleanup(studio, deletes=True).run()
    assert await names(studio) == []
    assert (studio.root / "yard" / "again.jpg").exists(), "it is another photo by now"


async def test_a_file_that_cannot_be_deleted_is_tried_again_and_its_row_stays(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("1.jpg", "2.jpg", "old.jpg"):
        await judged(studio, name, 31)
    tries: list[str] = []
    unlink = Path.unlink

    def refusing(path: Path, missing_ok: bool = False) -> None:
        tries.append(path.name)
        if path.name != "old.jpg":
            raise OSError(errno.EROFS, "Read-only file system")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refusing)
    monkeypatch.setattr(service, "_BATCH", 1)
    cleaner = cleanup(studio, deletes=True)
    with capture_logs() as logs:
        for _ in range(2):
            while await cleaner.run():
                pass
            assert cleaner.stuck
    # What cannot be deleted keeps nothing else from being, and is neither forgotten nor hidden.
    assert await names(studio) == [("yard/1.jpg", False), ("yard/2.jpg", False)]
    assert sorted(tries) == ["1.jpg", "1.jpg", "2.jpg", "2.jpg", "old.jpg"]
    told = [one for one in logs if one["event"] == "photos_not_deleted"]
    assert [(one["count"], one["causes"]) for one in told] == [(2, ["Read-only file system"])]
    monkeypatch.setattr(Path, "unlink", unlink)
    while await cleaner.run():
        pass
    assert (await names(studio), cleaner.stuck) == ([], False)
    assert list((studio.root / "yard").iterdir()) == []


async def test_rows_alone_go_once_files_are_no_longer_to_be_deleted(
    studio: Studio, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    await judged(studio, "old.jpg", 31)
    with monkeypatch.context() as patched:
        patched.setattr(Path, "unlink", refusing)
        await cleanup(studio, deletes=True).run()
        assert await names(studio) == [("yard/old.jpg", False)]
        await cleanup(studio).run()
    assert await names(studio) == [("yard/old.jpg", True)]
    assert (studio.root / "yard" / "old.jpg").exists()
    # And those that are hidden go with their files where that is wanted again.
    await cleanup(studio, deletes=True).run()
    assert await names(studio) == []
    assert not (studio.root / "yard" / "old.jpg").exists()


async def test_a_removed_camera_is_forgotten_with_the_last_that_it_has_brought(studio: Studio) -> None:
    await judged(studio, "old.jpg", 31)
    (studio.root / "yard" / "old.jpg").unlink()
    (studio.root / "yard").rmdir()
    (studio.root / "gate").mkdir()
    http = studio.http()
    assert (await http.delete("/cameras/yard")).json() == {"camera_id": "yard"}
    assert (await http.get("/events")).json()["pagination"]["total"] == 1
    await cleanup(studio).run()
    await cleanup(studio).run()
    assert await studio.rows("SELECT id FROM cameras") == []
