"""A mesh is copied under load, loses everything, and goes on from its copy."""

import io
import tarfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from tests.e2e.harness import RunningMesh, until

TENANT = "saved"
# As of a task that was created after the dump and before its objects were copied.
NEWER = "generations/00000000-0000-4000-8000-000000000000/1/result.png"
# Likewise, of a workflow.
NEWER_STEP = "workflows/00000000-0000-4000-8000-000000000001/0-base_image.png"
# Stored by the tenant itself, where tasks have their results.
OWN = "generations/11111111-0000-4000-8000-000000000000/1/mine.png"


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (40, 30), (20, 130, 60)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.timeout(300)
def test_a_mesh_goes_on_from_a_copy_that_was_made_under_load_and_takes_no_half_one(
    start_mesh: Callable[..., RunningMesh], tmp_path: Path
) -> None:
    mesh, lost = start_mesh(), start_mesh()
    lost.down()
    copy, done, content = tmp_path / "copy", threading.Event(), picture()
    half = tmp_path / "half"
    half.mkdir()
    (half / "database.dump").touch()
    assert "is not empty" in mesh.cli("backup", str(half)).stderr
    assert "holds no whole backup" in " ".join(lost.cli("restore", str(half)).stderr.split())

    def load() -> None:
        with mesh.http(tenant=TENANT) as client:
            number = 0
            while not done.wait(0.05):
                number += 1
                mesh.create(client, f"load-{number}")

    with mesh.http(tenant=TENANT) as client:
        first = {mesh.create(client, f"first-{number}")["id"] for number in range(5)}
        before = {task["id"]: task for task in mesh.wait_ended(client, 5, 60)}
        for path in ("kept.png", OWN):
            kind = {"content-type": "image/png"}
            saved = client.post(f"/api/v1/storage/images/{path}", content=content, headers=kind)
            assert saved.status_code == 200, saved.text
        paths = mesh.objects(TENANT)
        time.sleep(1.1)  # the store tells ages in seconds
        loading = threading.Thread(target=load)
        loading.start()
        try:
            copied = mesh.cli("backup", str(copy))
        finally:
            done.set()
            loading.join()
        assert copied.returncode == 0, copied.stderr
    mesh.down()
    with tarfile.open(copy / "objects.tar", "a") as archive:
        for newer in (NEWER, NEWER_STEP):
            member = tarfile.TarInfo(f"tenants/{TENANT}/{newer}")
            member.size, member.mtime = len(content), int(time.time())
            archive.addfile(member, io.BytesIO(content))

    restored = lost.cli("restore", str(copy))
    assert restored.returncode == 0, restored.stderr
    lost.up()
    with lost.http(tenant=TENANT) as client:
        held = {task["id"] for task in lost.tasks(client)}
        assert first <= held
        ended = {task["id"]: task for task in lost.wait_ended(client, len(held), 90)}
        assert {task["status"] for task in ended.values()} == {"COMPLETED"}
        assert all(ended[each].get("result") == before[each].get("result") for each in first)
        assert client.get("/api/v1/storage/images/kept.png").content == content
        until(lambda: not {NEWER, NEWER_STEP} & lost.objects(TENANT), "what no row names is swept", 60)
        assert OWN in paths
        assert paths <= lost.objects(TENANT)
