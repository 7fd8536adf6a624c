"""Batches whose photos have been looked at, as rows."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID, uuid4

from meshkit.loops import Loops
from tests.integration.capture.conftest import StartStudio, Studio

SHARP: dict[str, Any] = {"blurred": False, "exposure": "normal"}
NOBODY: dict[str, Any] = {"people": 0, **SHARP}
DARK: dict[str, Any] = {"people": 0, "blurred": True, "exposure": "under"}
PERSON: dict[str, Any] = {
    "people": 1,
    "framing": "full_body",
    "view_angle": "front",
    "subject": "person",
    "garment_colour": {"name": "red"},
    **SHARP,
}


async def quiet(start_studio: StartStudio, **settings: Any) -> Studio:
    """Start capture in which nothing runs by itself but what tells listeners."""
    studio = await start_studio(run_loops=False, **settings)
    await studio.stack.enter_async_context(Loops(studio.capture.relay.loop))
    return studio


async def batch(
    studio: Studio,
    *findings: dict[str, Any] | None,
    camera: str = "yard",
    state: str = "closed",
    age_seconds: float = 0.0,
    files: list[bytes] | None = None,
) -> UUID:
    """Write a batch of photos in which this was found; None is one that nobody has looked at yet."""
    batch_id = uuid4()
    await studio.rows("INSERT INTO cameras (id) VALUES (%s) ON CONFLICT DO NOTHING", camera)
    await studio.rows(
        "INSERT INTO batches (id, camera_id, state, started_at, last_activity_at, closed_at, photo_count) VALUES "
        "(%s, %s, %s, now() - %s * interval '1 s', now() - %s * interval '1 s', "
        "CASE WHEN %s = 'open' THEN NULL ELSE now() END, %s)",
        *(batch_id, camera, state, age_seconds, age_seconds, state, len(findings)),
    )
    for number, found in enumerate(findings):
        photo_id = uuid4()
        file = files[number] if files else f"{camera}/{photo_id}.jpg".encode()
        stat = studio.root / file.decode()
        size, modified = (stat.stat().st_size, stat.stat().st_mtime_ns) if stat.exists() else (10, 1)
        await studio.rows(
            "INSERT INTO photos (id, camera_id, file, path, size, modified_ns, sha256, state, seen_at, detected_at, "
            "batch_id, findings) VALUES (%s, %s, %s, %s, %s, %s, %s, %s, now() - %s * interval '1 s', "
            "CASE WHEN %s THEN now() END, %s, %s)",
            *(photo_id, camera, file, file.decode(), size, modified, photo_id.hex * 2),
            *("WAITING" if found is None else "DETECTED", age_seconds, found is not None, batch_id),
            None if found is None else json.dumps(found),
        )
        for _ in range((found or {}).get("people", 0)):
            await studio.rows(
                "INSERT INTO detections (photo_id, camera_id, object_type, label, confidence, detected_at) "
                "VALUES (%s, %s, 'person', 'person', 0.9, now())",
                *(photo_id, camera),
            )
    return batch_id
