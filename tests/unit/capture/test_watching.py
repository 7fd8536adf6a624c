"""Which files are photos, when one is whole, and how one is opened."""

import asyncio
import io
import os
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image

from meshkit.errors import MeshError, unavailable
from meshkit.images.limits import FORMATS
from services.monitoring.capture.cameras.domain import CameraStatus
from services.monitoring.capture.watching import files
from services.monitoring.capture.watching.domain import (
    HEAD_BYTES,
    SUFFIXES,
    TAIL_BYTES,
    FileStamp,
    PhotoCandidate,
    Wholeness,
    camera_of,
    is_photo_name,
    wholeness,
)
from services.monitoring.capture.watching.files import (
    FileChangedError,
    FoldersFound,
    hash_file,
    look_into,
    open_file,
    read_photo,
    stamp_of,
)
from services.monitoring.capture.watching.observer import is_remote
from services.monitoring.capture.watching.service import FileWatcher, WatchLimits

KINDS = ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")


def picture(kind: str) -> bytes:
    out = io.BytesIO()
    Image.effect_noise((64, 64), 50).convert("RGB").save(out, kind)
    return out.getvalue()


def judged(content: bytes) -> Wholeness:
    return wholeness(content[:HEAD_BYTES], content[-TAIL_BYTES:], len(content))


def test_a_file_that_cannot_be_read_waits_longer_each_time_up_to_five_minutes() -> None:
    candidate = PhotoCandidate(0.0, closed=True)
    pauses = []
    for _ in range(2000):  # a week
        candidate.put_off("Input/output error", 7.0)
        pauses.append(candidate.again_at - 7.0)
    assert pauses[:3] == [1, 2, 4]
    assert pauses == sorted(pauses)
    assert pauses[-1] == 300


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_picture_is_told_from_every_part_of_it(kind: str) -> None:
    content = picture(kind)
    whole = Wholeness.OPEN if kind in ("TIFF", "AVIF") else Wholeness.WHOLE
    assert judged(content) is whole
    assert judged(content + b"\0" * 512) is (Wholeness.PART if kind == "PNG" else whole)
    parts = {judged(content[:size]) for size in range(HEAD_BYTES, len(content))}
    assert parts == ({Wholeness.OPEN} if kind in ("TIFF", "AVIF") else {Wholeness.PART})
    assert judged(content[:2]) is Wholeness.FOREIGN


@pytest.mark.parametrize("content", [b"", b"text", b"GIF89a", b"RIFF\0\0\0\0WAVE", b"%PDF-1.7", b"\0" * 64])
def test_what_is_no_picture_is_told_by_its_first_bytes(content: bytes) -> None:
    assert judged(content) is Wholeness.FOREIGN


def test_photos_are_known_by_their_names_and_can_be_decoded() -> None:
    for name in (b"a.jpg", b"A.JPEG", b"a b.Png", b"\xff.webp", b"a.tif", b"a.TIFF"):
        assert is_photo_name(name)
    for name in (b"IMG_1.HEIC", b"a.heif", b"a.HIF", b"a.avif"):
        assert is_photo_name(name)
    for name in (b".a.jpg", b"a.jpg.part", b"a.mov", b"a.cr3", b"jpg", b"a.gif"):
        assert not is_photo_name(name)
    assert len(SUFFIXES) == 10
    assert set(KINDS) < set(FORMATS)


def test_cameras_are_folders_with_names_that_people_can_read() -> None:
    assert camera_of("Küche 1".encode()) == "Küche 1"
    for name in (b".trash", b"\xff", b"a\nb", b"a" * 129, "\u202ea".encode()):
        assert camera_of(name) is None


def test_no_link_is_followed_on_the_way_to_a_file(tmp_path: Path) -> None:
    (tmp_path / "root" / "left").mkdir(parents=True)
    (tmp_path / "root" / "left" / "a.jpg").write_bytes(b"own")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "a.jpg").write_bytes(b"secret")
    (tmp_path / "root" / "left" / "link.jpg").symlink_to(tmp_path / "outside" / "a.jpg")
    (tmp_path / "root" / "linked").symlink_to(tmp_path / "outside")
    os.mkfifo(tmp_path / "root" / "left" / "pipe.jpg")
    opened = open_file(tmp_path / "root", b"left/a.jpg")
    assert os.read(opened, 10) == b"own"
    os.close(opened)
    for place in (b"left/link.jpg", b"linked/a.jpg", b"../outside/a.jpg", b"left/pipe.jpg", b"left", b"left//a.jpg"):
        with pytest.raises(OSError):  # noqa: PT011 -- any refusal of the kernel's or ours
            open_file(tmp_path / "root", place)


def test_a_file_that_changes_under_the_reader_is_not_taken_for_what_it_was(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"before")
    stamp = stamp_of(tmp_path, b"a.jpg")
    assert stamp is not None
    digest = hash_file(tmp_path, b"a.jpg", stamp)
    assert read_photo(tmp_path, b"a.jpg", digest, 100) == b"before"
    with pytest.raises(FileChangedError):
        read_photo(tmp_path, b"a.jpg", digest, 5)
    file.write_bytes(b"behind")
    with pytest.raises(FileChangedError):
        hash_file(tmp_path, b"a.jpg", FileStamp(stamp.size, stamp.modified_ns, stamp.changed_ns))
    with pytest.raises(FileChangedError):
        read_photo(tmp_path, b"a.jpg", digest, 100)
    file.unlink()
    with pytest.raises(FileNotFoundError):
        read_photo(tmp_path, b"a.jpg", digest, 100)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_folder_without_rights_is_told_of_and_the_others_are_read() -> None:
    # Not in pytest's own folder, which nobody else may enter.
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "left" / "closed").mkdir(parents=True)
        (root / "left" / "a.jpg").write_bytes(b"closed")
        (root / "left" / "a.jpg").chmod(0)
        (root / "left" / "closed").chmod(0)
        root.chmod(0o755)
        stamp = stamp_of(root, b"left/a.jpg")
        assert stamp is not None
        found = FoldersFound()
        os.seteuid(65534)
        try:
            look_into(root, b"left", all_new, lambda _: None, 10, found)
            with pytest.raises(PermissionError):
                hash_file(root, b"left/a.jpg", stamp)
        finally:
            os.seteuid(0)
    assert found.troubles == {"left": "Its folder cannot be read: Permission denied"}
    assert [name for name, _ in found.files] == [b"left/a.jpg"]


def all_new(file: bytes, stamp: FileStamp) -> bool:
    del file, stamp
    return True


def test_a_drive_of_this_machine_is_not_taken_for_a_remote_one(tmp_path: Path) -> None:
    assert not is_remote(tmp_path)


def test_a_camera_that_went_is_told_of_and_a_folder_in_it_is_not(tmp_path: Path) -> None:
    found = FoldersFound()
    look_into(tmp_path, b"left", all_new, lambda _: None, 10, found)
    assert found.troubles == {"left": "Its folder is not there"}
    found = FoldersFound()
    look_into(tmp_path, b"left/day", all_new, lambda _: None, 10, found)
    assert found.files == []


def test_a_photo_of_the_same_content_is_read_whatever_else_of_its_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(b"photo")
    stamp = stamp_of(tmp_path, b"a.jpg")
    assert stamp is not None
    digest = hash_file(tmp_path, b"a.jpg", stamp)

    def meddling(root: Path, name: bytes) -> int:
        os.utime(file, (1, 1))
        return open_file(root, name)

    monkeypatch.setattr(files, "open_file", meddling)
    assert read_photo(tmp_path, b"a.jpg", digest, 100) == b"photo"


def test_a_time_beyond_what_a_row_holds_is_told_as_the_last_that_it_does(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"photo")
    os.utime(tmp_path / "a.jpg", (0, 13_000_000_000))  # in the year 2381, where the file system knows it
    stamp = stamp_of(tmp_path, b"a.jpg")
    assert stamp is not None
    assert stamp.modified_ns <= 2**63 - 1


class Rows:
    """Rows of cameras and photos, of which there are none."""

    async def disabled(self) -> frozenset[str]:
        return frozenset()

    async def names(self) -> list[str]:
        return []

    async def add_cameras(self, camera_ids: Collection[str]) -> None:
        pass

    async def judge_all(self, troubles: Mapping[str, str], offline_seconds: float, notes: Mapping[str, str]) -> int:
        return 0

    async def count_states(self) -> Mapping[CameraStatus, int]:
        return {}

    async def known_files(self, files: Collection[bytes]) -> Mapping[bytes, tuple[int, int]]:
        return {}


async def test_the_watcher_has_itself_woken_once_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left").mkdir()
    (tmp_path / "left" / "part.jpg").write_bytes(b"\xff\xd8\xff begun")
    rows = cast("Any", Rows())
    limits = WatchLimits(60.0, 600.0, 600.0, 600.0, 1000, 600.0)
    watcher = FileWatcher(tmp_path, "polling", limits, photos=rows, cameras=rows, on_photos=lambda: None)
    made: list[asyncio.TimerHandle] = []
    loop = asyncio.get_running_loop()
    later = loop.call_later

    def noted(delay: float, callback: Any, *args: Any) -> asyncio.TimerHandle:
        made.append(later(delay, callback, *args))
        return made[-1]

    monkeypatch.setattr(loop, "call_later", noted)
    for _ in range(5):
        assert not await watcher.run_once()
        assert watcher.pending == 1
    assert [one.cancelled() for one in made] == [True] * 4 + [False]
    made[-1].cancel()


class AwayOnce(Rows):
    """Rows whose database cannot write the first camera that comes."""

    def __init__(self) -> None:
        self.written: list[str] = []
        self.refusals = 1

    async def add_cameras(self, camera_ids: Collection[str]) -> None:
        if self.refusals:
            self.refusals -= 1
            raise unavailable("The database has no room", reason="NO_ROOM_LEFT")
        self.written += camera_ids


@pytest.mark.parametrize("told", [False, True])
async def test_a_folder_that_could_not_be_written_down_is_looked_at_again(tmp_path: Path, told: bool) -> None:
    rows = AwayOnce()
    limits = WatchLimits(60.0, 600.0, 600.0, 600.0, 1000, 600.0)
    given = cast("Any", rows)
    watcher = FileWatcher(tmp_path, "polling", limits, photos=given, cameras=given, on_photos=lambda: None)
    if told:
        await watcher.run_once()
        watcher.folder_came(b"left")
    (tmp_path / "left").mkdir()
    with pytest.raises(MeshError):
        await watcher.run_once()
    await watcher.run_once()
    assert rows.written == ["left"]
