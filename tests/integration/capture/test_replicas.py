"""Two replicas of capture on one database: they neither contradict each other nor part what belongs together."""

import asyncio
import uuid
from datetime import timedelta

import pytest

from services.monitoring.capture.batches.domain import BatchLimits
from services.monitoring.capture.photos.domain import SeenFile
from services.monitoring.capture.postgres.batches import PostgresBatchStore
from services.monitoring.capture.postgres.cameras import PostgresCameraStore
from services.monitoring.capture.postgres.photos import PostgresPhotoStore
from tests.integration.capture.conftest import StartStudio, Studio, until

# Holds up whoever writes the third photo of a camera, when the second one has been stamped.
_HOLD_UP = """
CREATE FUNCTION hold_up() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock(1); RETURN NEW; END $$;
CREATE TRIGGER hold_up BEFORE INSERT ON photos FOR EACH ROW WHEN (NEW.path = 'left/2.jpg') EXECUTE FUNCTION hold_up()
"""


@pytest.fixture
async def quiet(start_studio: StartStudio) -> Studio:
    """Capture that does nothing by itself."""
    return await start_studio(run_loops=False)


async def status(studio: Studio) -> str:
    [(found,)] = await studio.rows("SELECT status FROM cameras WHERE id = 'left'")
    return str(found)


async def test_one_replica_at_a_time_says_how_cameras_are(quiet: Studio) -> None:
    first, second = (PostgresCameraStore(quiet.capture.changes) for _ in range(2))
    await first.add_cameras(["left"])
    for _ in range(3):
        assert (await first.judge_all({"left": "there is no such folder"}, 60, {}), await status(quiet)) in {
            (1, "error"),
            (0, "error"),
        }
        assert (await second.judge_all({}, 60, {}), await status(quiet)) == (0, "error")
    await first.judge_no_more()
    assert (await second.judge_all({}, 60, {}), await status(quiet)) == (1, "unknown")
    assert (await first.judge_all({"left": "there is no such folder"}, 60, {}), await status(quiet)) == (0, "unknown")
    # One that was killed gives nothing back: its turn runs out.
    await quiet.rows("UPDATE leaders SET expires_at = now() WHERE work = 'cameras'")
    assert (await first.judge_all({"left": "there is no such folder"}, 60, {}), await status(quiet)) == (1, "error")


async def test_what_stops_lets_the_other_judge_at_once(start_studio: StartStudio) -> None:
    first = await start_studio()
    (first.root / "left").mkdir()

    async def judging() -> list[tuple[uuid.UUID]]:
        return await first.rows("SELECT holder FROM leaders WHERE work = 'cameras' AND expires_at > now()")

    [before] = await until(judging)
    second = await start_studio()
    assert await judging() == [before]
    await first.stack.aclose()
    assert await until(lambda: second.rows("SELECT work FROM leaders WHERE work = 'cameras' AND holder <> %s", *before))


async def test_a_photo_that_is_being_taken_is_waited_for_by_the_end_of_its_batch(quiet: Studio) -> None:
    changes = quiet.capture.changes
    await PostgresCameraStore(changes).add_cameras(["left"])
    photos, batches = PostgresPhotoStore(changes), PostgresBatchStore(changes)
    files = [SeenFile("left", f"left/{number}.jpg".encode(), 10, 1, f"{number:064x}") for number in range(3)]
    await photos.take(files[:1], {})
    limits = BatchLimits(timedelta(seconds=60), timedelta(seconds=60))
    await batches.gather("left", limits)
    await quiet.rows(_HOLD_UP)
    async with changes.db.transaction() as conn:
        await conn.execute("SELECT pg_advisory_xact_lock(1)")
        taking = asyncio.create_task(photos.take(files[1:], {}))
        await until(lambda: quiet.rows("SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        gathering = asyncio.create_task(batches.gather("left", BatchLimits(timedelta(0), timedelta(0))))
        done, _ = await asyncio.wait([gathering], timeout=0.5)
    assert await taking == 2
    await gathering
    assert not done, "it ended the batch without a photo that was seen before"
