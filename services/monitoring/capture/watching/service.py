"""The watcher: takes each photo that lands, once it is whole, and tells how cameras are."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from meshkit import metrics
from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.cameras.store import CameraStore
from services.monitoring.capture.photos.domain import SeenFile, shown
from services.monitoring.capture.photos.store import PhotoStore
from services.monitoring.capture.watching import files
from services.monitoring.capture.watching.domain import FileStamp, PhotoCandidate, Wholeness, camera_of, is_photo_name
from services.monitoring.capture.watching.files import FoldersFound
from services.monitoring.capture.watching.observer import NATIVE, POLLING, NativeObserver, choose_observer

_log = get_logger(__name__)

_CAMERAS = metrics.gauge("capture_cameras", "Cameras whose photos are taken, by state", ("status",))

_JUDGE_SECONDS = 5.0
_CLOSE_SECONDS = 2.0
# So many new files are found at once; the next are looked for once no more than half of that wait.
_MOST_FOUND = 1000
_ASKED_AT_ONCE = 500
_TAKEN_AT_ONCE = 64
_MOST_REFUSED_TOLD = 1000
_NO_PICTURE = "Its content is none of JPEG, PNG, WebP, TIFF, HEIC and AVIF"


@dataclass(frozen=True, slots=True)
class WatchLimits:
    """When a file is taken, and how often folders are looked through.

    Attributes:
        settle_seconds: How long a file that ends as its format does stays unchanged first.
        quiet_seconds: The same for one that does not.
        scan_seconds: How often all folders are looked through where the kernel tells of changes.
        poll_seconds: The same where it does not.
        max_bytes: Largest file that is read.
        offline_seconds: How long no photo must have come for a camera to be offline.
    """

    settle_seconds: float
    quiet_seconds: float
    scan_seconds: float
    poll_seconds: float
    max_bytes: int
    offline_seconds: float


class FileWatcher:
    """Watches the folders of cameras; safe with several replicas.

    Each of these reads every file, and one of them at a time says how cameras are.

    Args:
        root: Their root.
        observer: `native`, `polling` or `auto`.
        limits: When a file is taken.
        photos: Rows of photos.
        cameras: Rows of cameras.
        on_photos: Called when new photos were written.
        clock: Monotonic seconds.
    """

    def __init__(
        self,
        root: Path,
        observer: str,
        limits: WatchLimits,
        *,
        photos: PhotoStore,
        cameras: CameraStore,
        on_photos: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.root = root
        self.limits = limits
        self._wanted_observer = observer
        self._photos = photos
        self._cameras = cameras
        self._on_photos = on_photos
        self._clock = clock
        self._observer: NativeObserver | None = None
        self._began = False
        self._candidates: dict[bytes, PhotoCandidate] = {}
        self._known: dict[bytes, bytes] = {}
        self._folders: set[bytes] = set()
        self._look_at_all = True
        self._looked_at = float("-inf")
        self._judged_at = float("-inf")
        self._troubles: dict[str, str] = {}
        self._present: set[str] = set()
        self._disabled: frozenset[str] = frozenset()
        self._refused: set[bytes] = set()
        self._again: asyncio.TimerHandle | None = None
        self._wake = asyncio.Event()
        self.loop = Loop("file_watcher", self.run_once, min(limits.poll_seconds, _JUDGE_SECONDS), wake=self._wake)

    @property
    def observer_type(self) -> str:
        """How changes are noticed."""
        return POLLING if self._observer is None else NATIVE

    @property
    def pending(self) -> int:
        """Files that wait to be whole or to be read."""
        return len(self._candidates)

    async def close(self) -> None:
        """End what the kernel was asked for, and let another replica say how cameras are."""
        observer, self._observer = self._observer, None
        if observer is not None:
            await observer.close()
        if self._began:
            with suppress(MeshError, TimeoutError):  # without a database the claim runs out by itself
                async with asyncio.timeout(_CLOSE_SECONDS):
                    await self._cameras.judge_no_more()

    # -- what the kernel tells -----------------------------------------------------------------------------------

    def file_changed(self, file: bytes, *, closed: bool) -> None:
        """Note that a file came, or was closed by who wrote it."""
        folder, _, name = file.rpartition(b"/")
        if folder and is_photo_name(name):
            # Even where size and times are as before: who wrote it may have set them so.
            self._known.pop(file, None)
            self._candidates[file] = PhotoCandidate(self._clock(), closed)
            self._wake.set()

    def missed(self, file: bytes) -> None:
        """Note that a file was out of reach when it was to be looked at: it may be there by now, or come again."""
        self.file_changed(file, closed=False)

    def folder_came(self, folder: bytes) -> None:
        """Note that a folder came."""
        self._folders.add(folder)
        self._wake.set()

    def look_again(self) -> None:
        """Look through all folders soon."""
        self._look_at_all = True
        self._wake.set()

    # -- the loop ------------------------------------------------------------------------------------------------

    async def run_once(self) -> bool:
        """Look where something has changed and take what is whole; body of a loop.

        Returns:
            Whether there is more to do at once.
        """
        if not self._began:
            self._observer = choose_observer(self.root, self._wanted_observer, self)
            self._began = True
            if self._observer is not None:
                self._observer.start()
            _log.info("watching", root=str(self.root), observer=self.observer_type)
        every = self.limits.poll_seconds if self._observer is None else self.limits.scan_seconds
        more = False
        try:
            enough = sum(not one.unread for one in self._candidates.values()) > _MOST_FOUND // 2
            if not enough and (self._look_at_all or self._clock() - self._looked_at >= every):
                more = await self._look_through(every)
            elif not enough and self._folders:
                await self._look_into()
        except MeshError:
            self._look_at_all = True  # what was met could not be written down
            raise
        more |= await self._take()
        await self._judge()
        if not more and any(not one.unread for one in self._candidates.values()):
            # One at a time: each would have the next one made, and what the kernel tells makes further ones.
            if self._again is not None:
                self._again.cancel()
            self._again = asyncio.get_running_loop().call_later(self.limits.settle_seconds / 2, self._wake.set)
        return more

    async def _look_through(self, every: float) -> bool:
        """Look through all folders; return whether that has to go on."""
        self._look_at_all = False
        self._folders.clear()
        self._looked_at = self._clock()
        self._disabled = await self._cameras.disabled()
        try:
            found = await asyncio.to_thread(
                files.look_through, self.root, self._is_new, self._watch, _MOST_FOUND, self._disabled
            )
        except OSError as error:
            trouble = files.trouble_of(error)
            self._troubles = dict.fromkeys(await self._cameras.names(), trouble)
            self._looked_at += self.limits.poll_seconds - every
            self._judged_at = float("-inf")
            _log.warning("root_not_read", root=str(self.root), cause=trouble)
            return False
        names = set(await self._cameras.names())
        if new := found.cameras - names:
            await self._cameras.add_cameras(new)
        # Cameras of earlier runs whose folder is there no more are told of as well.
        gone = sorted(names - found.cameras)
        self._present = found.cameras
        if self._troubles != (troubles := dict.fromkeys(gone, files.NOT_THERE) | found.troubles):
            self._troubles, self._judged_at = troubles, float("-inf")
        await self._add(found)
        self._look_at_all |= not found.complete
        if found.complete and found.met + _MOST_FOUND < len(self._known):
            known = {file: stamp for file, stamp in self._known.items() if self._is_taken(file)}
            self._known = await asyncio.to_thread(files.still_there, self.root, known)
        return not found.complete

    async def _look_into(self) -> None:
        """Look into folders that came."""
        folders, self._folders = self._folders, set()
        found = FoldersFound()
        for folder in sorted(folders):
            camera = camera_of(folder.partition(b"/")[0])
            if camera is None:
                found.refused.append(folder)
                continue
            if camera not in self._present:
                await self._cameras.add_cameras([camera])
                self._present.add(camera)
            self._troubles.pop(camera, None)
            if camera in self._disabled:
                continue
            await asyncio.to_thread(files.look_into, self.root, folder, self._is_new, self._watch, _MOST_FOUND, found)
        self._troubles.update(found.troubles)
        self._look_at_all |= not found.complete
        await self._add(found)

    def _is_new(self, file: bytes, stamp: FileStamp) -> bool:
        if self._known.get(file) == stamp.packed():
            return False
        waiting = self._candidates.get(file)
        return waiting is None or (bool(waiting.unread) and waiting.stamp != stamp)

    def _watch(self, folder: bytes) -> None:
        observer = self._observer
        if observer is None:
            return
        try:
            observer.watch(folder)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            # The kernel watches no more folders for this user: look again and again.
            _log.warning("kernel_does_not_watch", cause=os.strerror(errno.ENOSPC))
            self._observer = None

    async def _add(self, found: FoldersFound) -> None:
        """Make candidates of files that no row knows."""
        for first in range(0, len(found.files), _ASKED_AT_ONCE):
            part = found.files[first : first + _ASKED_AT_ONCE]
            rows = await self._photos.known_files([file for file, _ in part if file not in self._candidates])
            for file, stamp in part:
                if rows.get(file) == (stamp.size, stamp.modified_ns) and file not in self._known:
                    self._known[file] = stamp.packed()
                elif self._is_new(file, stamp):
                    self._candidates[file] = PhotoCandidate(self._clock(), closed=False)
        for place in found.refused:
            if place not in self._refused and len(self._refused) < _MOST_REFUSED_TOLD:
                self._refused.add(place)
                _log.warning("not_watched", path=shown(place))

    # -- taking --------------------------------------------------------------------------------------------------

    async def _take(self) -> bool:
        """Take what is whole; return whether more is."""
        for file in [file for file in self._candidates if not self._is_taken(file)]:
            del self._candidates[file]  # it stays on the disk, and is found when its camera is switched on
        wanted = dict(self._candidates)
        ready, gone = await asyncio.to_thread(self._sort, wanted)
        for file in gone:
            self._drop(file, wanted[file])
        read, unread = await asyncio.to_thread(self._read, ready)
        for file, reason in unread:
            self._wait(file, wanted[file], reason)
        seen = [one for _, one, _ in read if one is not None]
        if seen:
            moved = await self._moved(seen)
            count = await self._photos.take(seen, moved)
            if count:
                self._judged_at = float("-inf")
                self._on_photos()
            _log.info("photos_taken", count=count, known=len(seen) - count)
        for file, one, stamp in read:
            if one is not None and stamp is not None:
                self._known[file] = stamp.packed()
            self._drop(file, wanted[file])
        return len(ready) == _TAKEN_AT_ONCE

    def _wait(self, file: bytes, candidate: PhotoCandidate, reason: str) -> None:
        """Have a file that cannot be read wait, and tell of it once."""
        if candidate.unread != reason:
            _log.warning("photo_unread", path=shown(file), cause=reason)
        candidate.put_off(reason, self._clock())

    def _is_taken(self, file: bytes) -> bool:
        return camera_of(file.partition(b"/")[0]) not in self._disabled

    def _drop(self, file: bytes, candidate: PhotoCandidate) -> None:
        # One that has changed meanwhile is another candidate.
        if self._candidates.get(file) is candidate:
            del self._candidates[file]

    def _sort(self, wanted: dict[bytes, PhotoCandidate]) -> tuple[list[bytes], list[bytes]]:
        """Return some files that are whole, and those met on the way that are there no more; blocks."""
        ready: list[bytes] = []
        gone: list[bytes] = []
        # What somebody has closed just now comes before what is only found: many may be, at the start.
        for file, one in sorted(wanted.items(), key=lambda pair: not pair[1].closed):
            if len(ready) == _TAKEN_AT_ONCE:
                break
            if one.again_at > self._clock():
                continue
            stamp = files.stamp_of(self.root, file)
            if stamp is None or self._known.get(file) == stamp.packed():
                gone.append(file)
            elif self._is_whole(file, one, stamp):
                ready.append(file)
        return ready, gone

    def _is_whole(self, file: bytes, one: PhotoCandidate, stamp: FileStamp) -> bool:
        now = self._clock()
        if stamp != one.stamp:
            one.stamp, one.since = stamp, now
        unchanged = now - one.since
        if unchanged >= self.limits.quiet_seconds:
            return True
        if stamp.size > self.limits.max_bytes:
            return False
        if one.looked_into == stamp or not (one.closed or unchanged >= self.limits.settle_seconds):
            return False
        # What cannot be read now can perhaps be read later.
        with suppress(OSError):
            ends = files.look_at_ends(self.root, file)
            if ends is Wholeness.WHOLE or (ends is Wholeness.OPEN and one.closed):
                return True
        one.looked_into = stamp
        return False

    def _read(
        self, wanted: Sequence[bytes]
    ) -> tuple[list[tuple[bytes, SeenFile | None, FileStamp | None]], list[tuple[bytes, str]]]:
        """Return what each file holds, None where there is nothing to write, and which cannot be read now; blocks."""
        read: list[tuple[bytes, SeenFile | None, FileStamp | None]] = []
        unread: list[tuple[bytes, str]] = []
        for file in wanted:
            try:
                found = self._read_one(file)
            except OSError as error:
                unread.append((file, files.reason_of(error)))
                continue
            if found is not None:
                read.append((file, *found))
        return read, unread

    def _read_one(self, file: bytes) -> tuple[SeenFile | None, FileStamp | None] | None:
        camera = camera_of(file.partition(b"/")[0])
        stamp = files.stamp_of(self.root, file)
        if camera is None or stamp is None:
            return None, None
        error, sha256 = None, ""
        try:
            if stamp.size > self.limits.max_bytes:
                error = f"Its file has {stamp.size} bytes; {self.limits.max_bytes} are the most that are read"
            elif not stamp.size:
                error = "Its file is empty"
            else:
                sha256 = files.hash_file(self.root, file, stamp)
                if files.look_at_ends(self.root, file) is Wholeness.FOREIGN:
                    error = _NO_PICTURE
        except (files.FileChangedError, FileNotFoundError):
            return None  # it stays a candidate: somebody writes it, or the next look finds it gone
        except OSError as caught:
            if files.passes(caught):
                raise
            error = f"Its file cannot be read: {files.reason_of(caught)}"
        if error is not None:
            _log.warning("photo_refused", path=shown(file), cause=error)
        return SeenFile(camera, file, stamp.size, stamp.modified_ns, sha256, error), stamp

    async def _moved(self, seen: Sequence[SeenFile]) -> dict[bytes, bytes]:
        """Return files that were another before: one of the same content that is there no more."""
        others = await self._photos.other_files(seen)

        def gone() -> dict[bytes, bytes]:
            return {file: other for file, other in others if files.stamp_of(self.root, other) is None}

        found = await asyncio.to_thread(gone) if others else {}
        # One that went was one file.
        return {file: other for other, file in {other: file for file, other in found.items()}.items()}

    async def _judge(self) -> None:
        """Write how cameras are."""
        if self._clock() - self._judged_at < _JUDGE_SECONDS:
            return
        changed = await self._cameras.judge_all(self._troubles, self.limits.offline_seconds, self._notes())
        for status, count in (await self._cameras.count_states()).items():
            _CAMERAS.labels(status.value).set(count)
        self._judged_at = self._clock()
        if changed:
            _log.info("cameras_changed", count=changed, troubles=len(self._troubles))

    def _notes(self) -> dict[str, str]:
        """Return what is to be said of cameras whose folder can be read, and files in it cannot."""
        counts: Counter[str] = Counter()
        reasons: dict[str, str] = {}
        for file, one in self._candidates.items():
            camera = camera_of(file.partition(b"/")[0]) if one.unread else None
            if camera is not None:
                counts[camera] += 1
                reasons.setdefault(camera, one.unread)
        return {
            camera: f"{count} {'file' if count == 1 else 'files'} cannot be read: {reasons[camera]}"
            for camera, count in counts.items()
        }
