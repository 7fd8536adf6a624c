"""Judge untrusted images, in child processes: the one door by which a service has an image decoded.

An image counts as small at first: the child reads its header and decodes it if little memory and few pixels are enough.
Otherwise the child says what the image needs, and it waits for its turn among the large ones. Nothing that an image
does to a child reaches the service: a child that crashes, or takes too long, is replaced, and its image refused. A
child that does not start, or lacks a part of its own, is no image's fault: that is an error of the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from atelier.mesh.v1.images_pb2 import ImageAnswer, ImageRequest

from meshkit import metrics
from meshkit.children import environment_without_secrets
from meshkit.config import MeshSettings
from meshkit.errors import MeshError, invalid, too_large, unavailable
from meshkit.images.limits import DEFAULT_LIMITS, MEMBER, ImageGrant, ImageInfo, ImageLimits
from meshkit.images.turns import FairTurns
from meshkit.last_words import LastWords
from meshkit.logging import get_logger
from meshkit.wire import FrameDecoder, WireError, pack

_log = get_logger(__name__)

_CHECKED = metrics.counter("image_checks", "Images that were judged, by size and outcome.", ("size", "outcome"))
_LOST = metrics.counter("image_child_losses", "Children that an image was decoded in and that were lost.", ("cause",))
_WAITING = metrics.gauge("image_checks_waiting", "Images that wait to be decoded.")

_MIB = 1024 * 1024
SMALL = ImageGrant(64 * _MIB, 16_000_000)
"""What an image may take to count as small."""
# A child that held more is replaced: its memory is back for sure, whatever the allocator keeps.
_KEPT_BYTES = 256 * _MIB
_KEPT_IMAGES = 500
_IN_MEMORY_BYTES = _MIB
_READ_BYTES = 64 * 1024
# A child that fails ends its side first, and then says why.
_EXIT_SECONDS = 3.0

ImageSource = bytes | BinaryIO | Callable[[], Awaitable[bytes | BinaryIO]]
"""An image: its bytes, an open file that stays open at an undefined position, or what loads it when its turn has come,
so that images that wait take no memory; it may be called more than once, and a file that it returns is closed."""


@dataclass(frozen=True, slots=True)
class WorkImage:
    """An image that passed and was made for work.

    Attributes:
        info: Facts about it as it was sent.
        made: Whether the given file holds what was made of it; otherwise it is fit as it stands.
        note: What was left aside in it; empty for nothing.
    """

    info: ImageInfo
    made: bool
    note: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """What is asked about one image.

    Attributes:
        tenant: Whose image it is.
        source: The image.
        limits: What is allowed.
        path: Path of the request's member, for the error.
        into: Takes what is made of the image, where that is asked for.
        width: Width of the thumbnail that is made; 0 where it is made for work.
    """

    tenant: str
    source: ImageSource
    limits: ImageLimits
    path: str
    into: Path | None = None
    width: int = 0

    def request(self, grant: ImageGrant) -> ImageRequest:
        """Return what the child is asked."""
        return ImageRequest(
            max_bytes=self.limits.max_bytes,
            max_pixels=self.limits.max_pixels,
            max_side=self.limits.max_side,
            max_frames=self.limits.max_frames,
            max_total_pixels=self.limits.max_total_pixels,
            formats=self.limits.formats,
            granted_bytes=grant.bytes,
            granted_pixels=grant.pixels,
            for_work=self.into is not None and not self.width,
            thumbnail_width=self.width,
        )


# What Python says of a part that is not there: a package, or a library of one.
_MISSING = re.compile(r"^(?:ModuleNotFoundError|ImportError): (?:No module named '(?P<package>[\w.]+)')?")
_LIBRARY = re.compile(r"(?P<library>lib[\w.+-]+\.so[\w.]*)")


class _ChildGoneError(Exception):
    """The child ended before it answered."""


class _Child:
    """One child process, which answers one request at a time."""

    def __init__(self, process: asyncio.subprocess.Process, sock: socket.socket, words: LastWords) -> None:
        self._process = process
        self._socket = sock
        self._words = words
        self._frames = FrameDecoder(ImageAnswer)
        self.images = 0

    @classmethod
    async def start(cls, memory_bytes: int) -> _Child:
        ours, theirs = socket.socketpair()
        ours.settimeout(0)  # the event loop waits for it
        words = await LastWords.open()
        try:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", "meshkit.images.child"),
                    *("--fd", str(theirs.fileno()), "--parent", str(os.getpid()), "--memory", str(memory_bytes)),
                    stdin=asyncio.subprocess.DEVNULL,
                    stderr=words.fd,
                    pass_fds=[theirs.fileno()],
                    env=environment_without_secrets(),
                    start_new_session=True,  # a Ctrl-C in the terminal must reach the parent alone
                )
        except BaseException:
            ours.close()
            raise
        finally:
            words.given()
        return cls(process, ours, words)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    async def ready(self) -> None:
        """Wait until it can judge images.

        Raises:
            _ChildGoneError: it ended.
        """
        await self._next()

    async def ask(self, request: ImageRequest, files: Sequence[int]) -> ImageAnswer:
        """Send a request with its open files, and return the answer.

        Raises:
            _ChildGoneError: it ended, or said nothing that can be understood.
        """
        self.images += 1
        try:
            # A frame is far smaller than a socket's buffer, and nothing else is in it.
            socket.send_fds(self._socket, [pack(request)], files)
        except OSError:
            raise _ChildGoneError from None
        return await self._next()

    async def _next(self) -> ImageAnswer:
        try:
            while data := await asyncio.get_running_loop().sock_recv(self._socket, _READ_BYTES):
                if answers := self._frames.feed(data):
                    return answers[0]
        except (OSError, WireError):
            pass
        raise _ChildGoneError

    async def end(self, grace_seconds: float = 0.0) -> str:
        """Kill it, unless it ends by itself in time; an idle child has nothing to finish.

        Returns:
            The last error that it has told; empty for none.
        """
        self._socket.close()
        if grace_seconds:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(grace_seconds):
                    await self._process.wait()
        if self.alive:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        return await self._words.ended()


class ImageChecks:
    """Judges images, and makes them for work.

    Args:
        places: Images that are decoded at a time, each in a child of its own; the first takes small ones alone.
        memory_bytes: Memory that the decoding of large images may take together.
        seconds: How long one image may take.
        wait_seconds: How long an image waits for its turn.
        limits: What is allowed where a caller says nothing else.
    """

    def __init__(
        self,
        *,
        places: int = 2,
        memory_bytes: int = 2560 * _MIB,
        seconds: float = 30.0,
        wait_seconds: float = 30.0,
        limits: ImageLimits = DEFAULT_LIMITS,
    ) -> None:
        self.limits = limits
        self._memory = memory_bytes
        self._seconds = seconds
        self._wait = wait_seconds
        self._turns = FairTurns(places, memory_bytes)
        self._children: dict[int, _Child] = {}

    @classmethod
    def from_settings(cls, settings: MeshSettings) -> ImageChecks:
        """Build it from a service's settings; the first image starts the first child."""
        return cls(
            places=settings.image_checks,
            memory_bytes=settings.image_memory_bytes,
            seconds=settings.image_seconds,
            wait_seconds=settings.image_wait_seconds,
            limits=ImageLimits(max_bytes=settings.max_image_bytes),
        )

    @property
    def pids(self) -> list[int]:
        """Processes of the children that live."""
        return [child.pid for child in self._children.values() if child.alive]

    async def check(
        self, tenant: str, source: ImageSource, limits: ImageLimits | None = None, *, path: str = MEMBER
    ) -> ImageInfo:
        """Check an image: format, size, frames, and that all of it decodes.

        Args:
            tenant: Whose image it is; tenants take turns.
            source: The image.
            limits: What is allowed; what always is if None.
            path: Path of the request's member, for the error.

        Raises:
            MeshError: `INVALID` with what is wrong with it, `TOO_LARGE` for too many bytes, `UNAVAILABLE` where its
                turn does not come in time, or where images cannot be decoded here.
        """
        return (await self._judged(Judgement(tenant, source, limits or self.limits, path))).info

    async def make_for_work(
        self, tenant: str, source: ImageSource, into: Path, limits: ImageLimits | None = None, *, path: str = MEMBER
    ) -> WorkImage:
        """Check an image, and write its first frame as a plain sRGB PNG unless it is fit for work as it stands.

        Args:
            tenant: Whose image it is.
            source: The image.
            into: Where the PNG is written; nothing is left there unless it is made.
            limits: What is allowed; what always is if None.
            path: Path of the request's member, for the error.

        Raises:
            MeshError: As for `check`.
        """
        work: WorkImage | None = None
        try:
            work = await self._judged(Judgement(tenant, source, limits or self.limits, path, into))
            return work
        finally:
            if work is None or not work.made:
                await asyncio.to_thread(into.unlink, missing_ok=True)

    async def make_thumbnail(
        self, tenant: str, source: ImageSource, width: int, limits: ImageLimits | None = None, *, path: str = MEMBER
    ) -> bytes:
        """Check an image, and return its first frame as a WebP of a width; one that is smaller is not enlarged.

        Raises:
            MeshError: As for `check`.
        """
        with tempfile.TemporaryDirectory(prefix="atelier-thumbnail-") as folder:
            into = Path(folder) / "thumbnail.webp"
            await self._judged(Judgement(tenant, source, limits or self.limits, path, into, width))
            return await asyncio.to_thread(into.read_bytes)

    async def close(self) -> None:
        """End the children."""
        children, self._children = list(self._children.values()), {}
        for child in children:
            await child.end()

    async def _judged(self, image: Judgement) -> WorkImage:
        path, most_pixels = image.path, image.limits.max_total_pixels
        answer = await self._answer(image, SMALL, large=False)
        size = "small"
        if answer.HasField("needed_bytes"):
            needed = max(answer.needed_bytes, SMALL.bytes)
            if needed > self._memory:
                _CHECKED.labels("large", "refused").inc()
                message = f"needs {needed} bytes of memory to decode, at most {self._memory} may be taken"
                raise invalid(path, message, "image_memory")
            # Pages of a TIFF may grow, so that not the first but the largest may decide: it is told again.
            size, grant = "large", ImageGrant(needed, most_pixels)
            answer = await self._answer(image, grant, large=True)
            if answer.HasField("needed_bytes"):
                grant = ImageGrant(self._memory, most_pixels)
                answer = await self._answer(image, grant, large=True)
        if not answer.HasField("facts"):
            _CHECKED.labels(size, "refused").inc()
            refusal = answer.refusal
            if refusal.type:
                raise invalid(path, refusal.message, refusal.type)
            raise too_large(f"{path} {refusal.message or 'needs too much memory'}")
        _CHECKED.labels(size, "passed").inc()
        facts = answer.facts
        if facts.note:
            _log.warning("image_part_left_aside", part=facts.note, member=path)
        return WorkImage(ImageInfo(facts.format, facts.width, facts.height, facts.frames), facts.made, facts.note)

    async def _answer(self, image: Judgement, grant: ImageGrant, *, large: bool) -> ImageAnswer:
        """Ask a child, once its turn has come; the seam at which tests answer without one."""
        request = image.request(grant)
        async with contextlib.AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(self._wait):
                    place = await stack.enter_async_context(self._turns.turn(image.tenant, grant.bytes, large=large))
            except TimeoutError:
                raise unavailable("Too many images wait to be decoded", reason="NO_ROOM") from None
            finally:
                _WAITING.set(self._turns.waiting)
            file = await _opened(image.source, image.limits, image.path, stack)
            files = [file]
            if image.into is not None:
                files.append(stack.enter_context(image.into.open("wb")).fileno())
            # A child may end for a reason that is not the image's, such as an operator: what it had is tried once more.
            for last in (False, True):
                try:
                    return await self._ask(place, request, files, image.path)
                except _ChildGoneError:
                    if last:
                        raise invalid(image.path, "is damaged: it cannot be decoded", "image_broken") from None
        raise AssertionError("every way through the loop returns or raises")

    async def _ask(self, place: int, request: ImageRequest, files: Sequence[int], path: str) -> ImageAnswer:
        child, cause = await self._child(place), "died"
        keep = False
        try:
            async with asyncio.timeout(self._seconds):
                answer = await child.ask(request, files)
            keep = child.images < _KEPT_IMAGES and request.granted_bytes <= _KEPT_BYTES
            cause = ""
            return answer
        except TimeoutError:
            cause = "time"
            raise invalid(path, f"takes more than {self._seconds:g} s to decode", "image_time") from None
        except _ChildGoneError:
            said = await asyncio.shield(child.end(_EXIT_SECONDS))
            if _MISSING.match(said):
                raise _cannot_decode(said) from None
            raise
        except asyncio.CancelledError:
            cause = ""  # nobody waits for it any more
            raise
        finally:
            if cause:
                _log.warning("image_child_lost", cause=cause, pid=child.pid)
                _LOST.labels(cause).inc()
            if not keep:
                self._children.pop(place, None)
                await asyncio.shield(child.end())

    async def _child(self, place: int) -> _Child:
        child = self._children.get(place)
        if child is not None and child.alive:
            return child
        if child is not None:
            await child.end()
        try:
            # Small images in the other places grow to no more than a small grant, but any place may serve any image.
            child = await _Child.start(self._memory)
        except OSError:
            _log.exception("image_child_not_started")
            raise unavailable("Images cannot be decoded right now") from None
        self._children[place] = child
        is_ready = False
        try:
            async with asyncio.timeout(self._seconds):
                await child.ready()
            is_ready = True
            return child
        except (TimeoutError, _ChildGoneError) as error:
            grace = 0.0 if isinstance(error, TimeoutError) else _EXIT_SECONDS
            said = await asyncio.shield(child.end(grace))
            _log.error("image_child_not_started", pid=child.pid, last_error=said)
            _LOST.labels("start").inc()
            raise _cannot_decode(said) from None
        finally:
            if not is_ready:
                self._children.pop(place, None)
                await asyncio.shield(child.end())


def _cannot_decode(said: str) -> MeshError:
    """Return the error where a child cannot do its work.

    Args:
        said: Its last error; empty for none.
    """
    found = _MISSING.match(said)
    if found is None:
        return unavailable("Images cannot be decoded here: the process that decodes them does not start")
    package, library = found["package"], _LIBRARY.search(said)
    part = f"the package {package}" if package else f"the library {library['library']}" if library else "a library"
    return unavailable(f"Images cannot be decoded here: {part} is missing or cannot be loaded", "PART_MISSING")


async def _opened(source: ImageSource, limits: ImageLimits, path: str, stack: contextlib.AsyncExitStack) -> int:
    """Return the descriptor of an open file with the image; the stack closes what is opened here.

    Raises:
        MeshError: `TOO_LARGE`.
    """
    if callable(source):
        source = await source()
        if not isinstance(source, bytes):
            stack.callback(source.close)
    if isinstance(source, bytes):
        if len(source) > limits.max_bytes:
            raise too_large(f"{path} has {len(source)} bytes, at most {limits.max_bytes} are allowed")
        file = stack.enter_context(_memory_file())
        if len(source) <= _IN_MEMORY_BYTES:
            file.write(source)
        else:
            await asyncio.to_thread(file.write, source)
        return file.fileno()
    size = source.seek(0, os.SEEK_END)
    source.seek(0)
    if size <= _IN_MEMORY_BYTES:
        # It may not lie in a file at all, as a spooled one.
        return await _opened(source.read(), limits, path, stack)
    source.flush()
    return source.fileno()


def _memory_file() -> BinaryIO:
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("image"), "w+b", buffering=0)
    return cast("BinaryIO", tempfile.TemporaryFile(buffering=0))
