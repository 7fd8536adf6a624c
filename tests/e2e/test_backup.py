"""A mesh is copied under load, loses everything, and goes on from its copy on fresh servers."""

import io
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e import drill
from tests.e2e.harness import NOOP_ENVIRONMENT, RunningMesh, until

TENANT = drill.TENANTS[0]
# As of a task that was created after the dump and before its objects were copied.
NEWER = "generations/00000000-0000-4000-8000-000000000000/1/result.png"
# Likewise, of a workflow.
NEWER_STEP = "workflows/00000000-0000-4000-8000-000000000001/0-base_image.png"
# Stored by the tenant itself, where tasks have their results.
OWN = "generations/11111111-0000-4000-8000-000000000000/1/mine.png"


@pytest.fixture
def fresh(servers_folder: Path) -> Iterator[RunningMesh]:
    """A mesh that was never started."""
    folder = Path(tempfile.mkdtemp(dir=servers_folder, prefix="fresh-"))
    folder.chmod(0o711)
    mesh = RunningMesh(folder, NOOP_ENVIRONMENT)
    yield mesh
    mesh.down()


@pytest.mark.timeout(600)
def test_a_mesh_goes_on_from_a_copy_that_was_made_under_load_and_takes_no_half_one(
    start_mesh: Callable[..., RunningMesh], fresh: RunningMesh, tmp_path: Path
) -> None:
    mesh, copy, half = start_mesh(), tmp_path / "copy", tmp_path / "half"
    half.mkdir()
    (half / "database.dump").touch()
    assert "is not empty" in mesh.cli("backup", str(half)).stderr
    with mesh.http(tenant=TENANT) as client:
        drill.store(client, OWN)

    def add_newer() -> None:
        assert "holds no whole backup" in " ".join(fresh.cli("restore", str(half)).stderr.split())
        with tarfile.open(copy / "objects.tar", "a") as archive:
            for newer in (NEWER, NEWER_STEP):
                member = tarfile.TarInfo(f"tenants/{TENANT}/{newer}")
                content = drill.picture()
                member.size, member.mtime = len(content), int(time.time())
                archive.addfile(member, io.BytesIO(content))

    done = drill.run(mesh, fresh, copy, creates=30, meanwhile=add_newer)
    assert done.found.clean, done.table()
    assert all(each.tasks and each.workflows and each.objects for each in done.told.values()), "nothing was at stake"
    with fresh.http(tenant=TENANT) as client:
        assert client.get(f"/api/v1/storage/images/{drill.IMAGE}").content == drill.picture()
    until(lambda: not {NEWER, NEWER_STEP} & fresh.objects(TENANT), "what no row names is swept", 60)
    assert OWN in fresh.objects(TENANT)
