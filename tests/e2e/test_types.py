"""Every type that the device executes: killed in the middle it ends once, cancelled it leaves nothing, and any picture
that it is given is a result or a clear refusal.
"""

import base64
import io
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from meshkit.catalog import TASK_TYPES, MediaKind
from meshkit.images.notes import read_notes
from services.tasks.catalog import TASK_TYPES_WITH_HANDLERS
from tests.e2e.bodies import IMAGE_FIELDS, STORED, body, data_url, photo
from tests.e2e.harness import RunningMesh, ended_task, post_until_answered, until

pytestmark = pytest.mark.timeout(600)

_TRIES = 8
# Whether a picture is taken does not depend on how long it is worked on.
_SHORT: dict[str, dict[str, Any]] = {
    "GENERATION": {"steps": 3},
    "EDITING": {"steps": 3},
    "VIDEO_GENERATION": {"config": {"width": 64, "height": 64, "steps": 3}},
}
# The kind of picture whose task asks that its result say nothing of its making.
_SILENT = "cmyk"
_PICTURE_TYPES = tuple(name for name in TASK_TYPES_WITH_HANDLERS if IMAGE_FIELDS[name] is not None)


def _stored(client: httpx.Client, name: str, content: bytes, media_type: str) -> httpx.Response:
    return client.post(f"/api/v1/storage/images/{name}", content=content, headers={"content-type": media_type})


def _create(client: httpx.Client, task_type: str) -> dict[str, Any]:
    picture = data_url(photo())
    if task_type in STORED:
        content = io.BytesIO()
        photo().save(content, "PNG")
        assert _stored(client, "photo.png", content.getvalue(), "image/png").status_code == 200
        picture = "photo.png"
    return post_until_answered(client, "/api/v1/tasks/", body(task_type, picture), str(uuid.uuid4()))


def _task(client: httpx.Client, task: dict[str, Any]) -> dict[str, Any]:
    return dict(client.get(f"/api/v1/tasks/{task['id']}").json())


def _executes(client: httpx.Client, task: dict[str, Any]) -> bool:
    """Wait until a task executes; false if it has ended before that was seen."""

    def status() -> str | None:
        found = str(_task(client, task)["status"])
        return None if found == "PENDING" else found

    return until(status, "it begins", 120, pause_seconds=0.01) == "EXECUTING"


def _ended(client: httpx.Client, task: dict[str, Any]) -> dict[str, Any]:
    return ended_task(client, task["id"])


def _results(mesh: RunningMesh, tenant: str, task: dict[str, Any]) -> set[str]:
    return {path for path in mesh.objects(tenant) if task["id"] in path and "/inputs/" not in path}


# Each one starts a child anew, which takes ten seconds and more: one type stands for all in the short form.
@pytest.mark.parametrize(
    "task_type",
    [pytest.param(name, marks=() if name == "GENERATION" else pytest.mark.long) for name in TASK_TYPES_WITH_HANDLERS],
)
def test_a_task_whose_child_is_killed_has_one_result(device_mesh: RunningMesh, task_type: str) -> None:
    tenant = f"struck-{task_type.lower().replace('_', '-')}"
    with device_mesh.http(tenant) as client:
        for _ in range(_TRIES):
            task = _create(client, task_type)
            if _executes(client, task):
                os.kill(device_mesh.worker_child(), signal.SIGKILL)
            ended = _ended(client, task)
            assert ended["status"] == "COMPLETED", ended["errors"]
            outcomes = [each["outcome"] for each in device_mesh.attempts(client, task["id"])]
            assert outcomes[-1] == "COMPLETED"
            assert outcomes.count("COMPLETED") == 1
            if outcomes == ["FAILED", "COMPLETED"]:
                break
        else:
            pytest.fail(f"no attempt of {_TRIES} was struck")
        winning = f"/{len(outcomes)}/"
        until(lambda: all(winning in path for path in _results(device_mesh, tenant, task)), "one result is kept", 60)


@pytest.mark.parametrize("task_type", TASK_TYPES_WITH_HANDLERS)
def test_a_cancelled_task_leaves_no_result_and_frees_the_device(device_mesh: RunningMesh, task_type: str) -> None:
    tenant = f"cancelled-{task_type.lower().replace('_', '-')}"
    with device_mesh.http(tenant) as client:
        for _ in range(_TRIES):
            task = _create(client, task_type)
            _executes(client, task)
            if client.post(f"/api/v1/tasks/{task['id']}/cancel").status_code == 200:
                break
        else:
            pytest.fail(f"all of {_TRIES} had ended before they could be cancelled")
        follower = _create(client, "IMAGE_ADJUSTER")
        assert _ended(client, follower)["status"] == "COMPLETED"
        assert _task(client, task)["status"] == "CANCELLED"
        until(
            lambda: [each["outcome"] for each in device_mesh.attempts(client, task["id"]) if each["ended_at"]],
            "its attempt has ended",
        )
        until(lambda: not _results(device_mesh, tenant, task), "it leaves no result", 60)


def _kinds() -> dict[str, tuple[bytes, str]]:
    """Pictures of all kinds, with their media types."""
    plain = photo(96)
    transparent = plain.convert("RGBA")
    transparent.putalpha(Image.linear_gradient("L").resize(plain.size))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    frames = [plain, plain.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]

    def saved(image: Image.Image, form: str, **save: Any) -> bytes:
        out = io.BytesIO()
        image.save(out, form, **save)
        return out.getvalue()

    png = saved(plain, "PNG")
    return {
        "transparent": (saved(transparent, "PNG"), "image/png"),
        "empty": (saved(Image.new("RGBA", (64, 64)), "PNG"), "image/png"),
        "grey-16-bit": (saved(plain.convert("I;16"), "PNG"), "image/png"),
        "palette": (saved(plain.convert("P"), "PNG"), "image/png"),
        "cmyk": (saved(plain.convert("CMYK"), "JPEG"), "image/jpeg"),
        "rotated": (saved(plain, "JPEG", exif=rotated), "image/jpeg"),
        "one-pixel": (saved(plain.crop((9, 9, 10, 10)), "PNG"), "image/png"),
        "one-row": (saved(plain.crop((0, 9, 90, 10)), "PNG"), "image/png"),
        "animated": (saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]), "image/webp"),
        "cut-off": (png[: len(png) // 2], "image/png"),
        "no-picture": (b"MZ" + bytes(64), "image/png"),
    }


def _offered(client: httpx.Client, task_type: str, name: str, content: bytes, media_type: str) -> httpx.Response:
    """Ask for a task on a picture; the storage may refuse the picture before."""
    if task_type in STORED:
        kept = _stored(client, f"{name}.{media_type.partition('/')[2]}", content, media_type)
        if kept.status_code != 200:
            return kept
        picture = f"{name}.{media_type.partition('/')[2]}"
    else:
        picture = f"data:{media_type};base64,{base64.b64encode(content).decode()}"
    request = body(task_type, picture) | _SHORT.get(task_type, {})
    if name == _SILENT:
        request["config"] = {**request.get("config", {}), "metadata": False}
    return client.post("/api/v1/tasks/", json=request)


def _notes(client: httpx.Client, task: dict[str, Any], file: Path) -> dict[str, Any] | None:
    """What the result of a task says of its making."""
    path = task.get("result_image_path") or task["result_image_paths"][0]
    file.write_bytes(client.get(f"/api/v1/storage/images/{path}").content)
    return read_notes(file)


# All types have their pictures decoded in one place: one that takes data and one that takes paths stand for the others.
_OF_ALL_KINDS = frozenset({"IMAGE_ADJUSTER", "BACKGROUND_REMOVE"})
_FEW_KINDS = ("transparent", "cmyk", "rotated", "one-pixel", "cut-off")


@pytest.mark.parametrize(
    ("task_type", "names"),
    [
        *(pytest.param(name, None if name in _OF_ALL_KINDS else _FEW_KINDS, id=name) for name in _PICTURE_TYPES),
        *(pytest.param(name, None, id=f"{name}-all", marks=pytest.mark.long) for name in _PICTURE_TYPES),
    ],
)
def test_a_picture_of_any_kind_is_a_result_or_a_clear_refusal(
    device_mesh: RunningMesh, task_type: str, names: tuple[str, ...] | None, tmp_path: Path
) -> None:
    tenant = f"kinds-{task_type.lower().replace('_', '-')}"
    with device_mesh.http(tenant) as client:
        taken: dict[str, dict[str, Any]] = {}
        kinds = _kinds()
        for name in names or kinds:
            content, media_type = kinds[name]
            answer = _offered(client, task_type, name, content, media_type)
            if answer.status_code == 200:
                taken[name] = answer.json()
            else:
                assert answer.status_code in {415, 422}, f"{name}: {answer.text}"
                assert answer.json()["detail"]
        assert not {"cut-off", "no-picture"} & set(taken) or task_type in STORED
        sound = {"transparent", "grey-16-bit", "palette", "cmyk", "rotated", "animated"}
        assert sound & set(names or kinds) <= set(taken)
        for name, task in taken.items():
            ended = _ended(client, task)
            assert ended["retry_count"] == 0, f"{name}: {ended['errors']}"
            if ended["status"] != "COMPLETED":
                assert ended["error_category"] == "VALIDATION", f"{name}: {ended['errors']}"
                assert ended["errors"], name
        told, silent = _ended(client, taken["rotated"]), _ended(client, taken[_SILENT])
        assert told["status"] == silent["status"] == "COMPLETED"
        if any(output.media is MediaKind.IMAGE for output in TASK_TYPES[task_type].outputs):
            notes = _notes(client, told, tmp_path / "told.png")
            assert notes is not None
            assert notes["task_type"] == task_type
            assert notes.get("prompt") == told.get("prompt")
            assert _notes(client, silent, tmp_path / "silent.png") is None


# A side of 8192 pixels is the most that a result may have, and a picture of that size on both sides the largest input.
# The members of these types that take data take no path.
_BY_PATH = {"GENERATION": "reference_image_url", "VIDEO_GENERATION": "input_image_url"}
_LARGEST = {"tall": (4096, 8192), "square": (8192, 8192)}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("task_type", _PICTURE_TYPES)
def test_a_picture_as_large_as_any_is_a_result_or_a_clear_refusal(device_mesh: RunningMesh, task_type: str) -> None:
    with device_mesh.http(f"large-{task_type.lower().replace('_', '-')}") as client:
        for name, size in _LARGEST.items():
            content = io.BytesIO()
            photo(512).resize(size, Image.Resampling.BILINEAR).save(content, "JPEG", quality=80)
            kept = _stored(client, f"{name}.jpg", content.getvalue(), "image/jpeg")
            assert kept.status_code == 200, kept.text
            request = body(task_type, f"{name}.jpg")
            if member := _BY_PATH.get(task_type):
                del request[str(IMAGE_FIELDS[task_type])]
                request[member] = f"{name}.jpg"
            answer = client.post("/api/v1/tasks/", json=request)
            assert answer.status_code == 200, answer.text
            ended = ended_task(client, answer.json()["id"], 800)
            assert ended["retry_count"] == 0, ended["errors"]
            assert ended["status"] == "COMPLETED" or ended["error_category"] == "VALIDATION", ended["errors"]
            assert _peak_bytes(device_mesh.worker_child()) < _MOST_BYTES


# What all models together may hold by default on this machine is more; this is what one such picture may add.
_MOST_BYTES = 9 << 30


def _peak_bytes(process: int) -> int:
    """The most that a process has held, as the system counts it."""
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("the system tells no peak")
