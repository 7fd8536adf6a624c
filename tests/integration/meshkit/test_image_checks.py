"""Untrusted images in their child processes: what they may take, what they may break, who waits for whom."""

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any

import psutil
import pytest
from PIL import Image

from meshkit.errors import ErrorKind, MeshError
from meshkit.images.checks import ImageChecks, Judgement
from meshkit.images.limits import DEFAULT_LIMITS, ImageGrant, ImageLimits
from tests.webp import animated_webp, solid_webp

MIB = 1024 * 1024


@pytest.fixture
async def checks() -> AsyncIterator[ImageChecks]:
    checks = ImageChecks(seconds=120, wait_seconds=120)  # a busy machine takes its time
    yield checks
    await checks.close()


@pytest.fixture(scope="module")
def large() -> bytes:
    """As many pixels as an image may have, in a few bytes."""
    return solid_webp(8192, 8192)


def small(color: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(out, "PNG")
    return out.getvalue()


async def refusal(work: Any) -> str:
    with pytest.raises(MeshError) as caught:
        await work
    return caught.value.violations[0].type if caught.value.violations else caught.value.kind.value


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 -- processes set no event
            await asyncio.sleep(0.01)


def decodes(checks: ImageChecks, pid: int) -> bool:
    return any(one.pid == pid and one.images > 0 for one in checks._children.values())


def ended(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


async def test_an_image_is_judged_from_bytes_files_and_what_loads_it(checks: ImageChecks, tmp_path: Path) -> None:
    async def load() -> bytes:
        return small()

    with SpooledTemporaryFile(max_size=10 * MIB) as spool, (tmp_path / "a.bmp").open("w+b") as file:
        spool.write(small())
        Image.effect_noise((1200, 1200), 90).save(file, "BMP")
        assert file.tell() > MIB
        assert (await checks.check("acme", small())).content_type == "image/png"
        assert (await checks.check("acme", load)).width == 8
        assert (await checks.check("acme", spool)).height == 6  # type: ignore[arg-type] # a spool is no BinaryIO by name
        assert (await checks.check("acme", file)).content_type == "image/bmp"
        assert not file.closed
    assert len(checks.pids) == 1, "one after another, they need one child"


async def test_errors_name_the_callers_member(checks: ImageChecks) -> None:
    with pytest.raises(MeshError) as caught:
        await checks.check("acme", b"nothing", path="task.generation.image")
    assert [(one.path, one.type) for one in caught.value.violations] == [("task.generation.image", "image_format")]
    with pytest.raises(MeshError, match=r"^x has 500 bytes") as caught:
        await checks.check("acme", bytes(500), ImageLimits(max_bytes=100), path="x")
    assert caught.value.kind is ErrorKind.TOO_LARGE


async def test_large_images_take_the_services_memory_neither_while_nor_after(checks: ImageChecks, large: bytes) -> None:
    await checks.check("acme", small())
    before = psutil.Process().memory_info().rss
    judging = [asyncio.create_task(checks.check("acme", large)) for _ in range(4)]
    most, children = 0, 0
    while not all(one.done() for one in judging):
        most = max(most, psutil.Process().memory_info().rss)
        children = max(children, len(checks.pids))
        await asyncio.sleep(0.02)
    assert {(await one).width for one in judging} == {8192}
    assert most - before < 50 * MIB
    assert children <= 2
    assert sum(psutil.Process(pid).memory_info().rss for pid in checks.pids) < 200 * MIB


async def test_small_images_do_not_wait_for_large_ones(checks: ImageChecks, large: bytes) -> None:
    flood = [asyncio.create_task(checks.check("acme", large)) for _ in range(4)]
    await until(lambda: len(checks.pids) == 2)
    for tenant in ("other", "acme"):
        assert (await checks.check(tenant, small())).format == "PNG"
    assert not all(one.done() for one in flood)
    await asyncio.gather(*flood)


async def test_an_animation_of_large_frames_is_refused_by_its_header(checks: ImageChecks) -> None:
    data = animated_webp(8192, 8192, 4)
    assert len(data) < 1000
    before = sum(psutil.Process(pid).cpu_times().user for pid in checks.pids)
    assert await refusal(checks.check("acme", data)) == "image_size"
    assert len(checks.pids) == 1, "it never counted as large"
    assert sum(psutil.Process(pid).cpu_times().user for pid in checks.pids) - before < 2.0


async def test_many_frames_that_are_allowed_pass(checks: ImageChecks) -> None:
    info = await checks.check("acme", animated_webp(600, 600, 150))
    assert (info.frames, info.width) == (150, 600)


async def test_the_largest_image_that_passes_the_door_passes_for_work(
    checks: ImageChecks, large: bytes, tmp_path: Path
) -> None:
    assert (await checks.check("acme", large)).width == 8192
    work = await checks.make_for_work("acme", large, tmp_path / "plain.png")
    assert not work.made
    out = io.BytesIO()
    Image.new("L", (8192, 8192), 90).save(out, "TIFF", compression="tiff_lzw")
    work = await checks.make_for_work("acme", out.getvalue(), tmp_path / "made.png")
    assert work.made
    assert (tmp_path / "made.png").stat().st_size > 0
    assert not (tmp_path / "plain.png").exists()


async def test_an_image_that_needs_more_than_all_memory_is_refused_undecoded(large: bytes) -> None:
    checks = ImageChecks(memory_bytes=128 * MIB)
    try:
        assert await refusal(checks.check("acme", large)) == "image_memory"
        assert (await checks.check("acme", small())).width == 8
    finally:
        await checks.close()


async def test_a_child_gets_no_more_memory_than_it_may_take(large: bytes) -> None:
    checks = ImageChecks(memory_bytes=128 * MIB)
    try:
        image = Judgement("acme", large, DEFAULT_LIMITS, "image")
        answer = await checks._answer(image, ImageGrant(1 << 40, 1 << 40), large=False)
        assert answer.refusal.type in {"image_memory", "image_broken"}
    finally:
        await checks.close()


async def test_an_image_that_kills_its_child_costs_nobody_else(checks: ImageChecks, large: bytes) -> None:
    await checks.check("other", small())
    (first,) = checks.pids
    bad = asyncio.create_task(checks.check("acme", large))
    killed: set[int] = set()
    waiting: asyncio.Task[Any] | None = None
    for _ in range(2):
        await until(lambda: set(checks.pids) - {first} - killed)
        waiting = waiting or asyncio.create_task(checks.check("other", large))
        (pid,) = set(checks.pids) - {first} - killed
        await until(partial(decodes, checks, pid))
        os.kill(pid, signal.SIGKILL)
        killed.add(pid)
    assert waiting is not None
    assert await refusal(bad) == "image_broken"
    assert (await checks.check("other", small())).width == 8
    assert (await waiting).width == 8192


async def test_a_child_that_is_lost_once_is_not_the_images_fault(checks: ImageChecks) -> None:
    await checks.check("acme", small())
    (pid,) = checks.pids
    os.kill(pid, signal.SIGSTOP)
    judging = asyncio.create_task(checks.check("acme", small()))
    await asyncio.sleep(0)
    os.kill(pid, signal.SIGKILL)
    assert (await judging).width == 8
    assert checks.pids != [pid]


_LACKS_NUMPY = """
import PIL.ImageFile
def load(self):
    raise ModuleNotFoundError("No module named 'numpy'")
PIL.ImageFile.ImageFile.load = load
"""


@pytest.mark.parametrize(
    ("module", "fails", "part"),
    [
        ("PIL/__init__.py", "raise ModuleNotFoundError(\"No module named 'PIL'\")", "the package PIL"),
        ("PIL/__init__.py", "raise ImportError('libjpeg.so.8: cannot open shared object')", "the library libjpeg.so.8"),
        ("PIL/__init__.py", "import os; os._exit(3)", "the process that decodes them does not start"),
        # It lacks something only once it decodes.
        ("sitecustomize.py", _LACKS_NUMPY, "the package numpy"),
    ],
)
async def test_a_child_that_lacks_a_part_or_does_not_start_is_the_services_error_not_the_images(
    checks: ImageChecks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, fails: str, part: str
) -> None:
    (tmp_path / module).parent.mkdir(exist_ok=True)
    (tmp_path / module).write_text(fails)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(MeshError) as caught:
        await checks.check("acme", small(), path="task.generation.image")
    assert caught.value.kind is ErrorKind.UNAVAILABLE
    assert part in caught.value.message
    assert not caught.value.violations
    assert not checks.pids
    monkeypatch.delenv("PYTHONPATH")
    assert (await checks.check("acme", small())).width == 8, "it is tried again for the next image"


async def test_an_image_that_takes_too_long_is_refused_and_its_child_replaced() -> None:
    checks = ImageChecks(seconds=10.0)  # in which a child starts on a busy machine too
    try:
        await checks.check("acme", small())
        (pid,) = checks.pids
        os.kill(pid, signal.SIGSTOP)
        assert await refusal(checks.check("acme", small())) == "image_time"
        assert ended(pid)
        assert (await checks.check("acme", small())).width == 8
    finally:
        await checks.close()


async def test_a_caller_that_leaves_frees_its_place(checks: ImageChecks, large: bytes) -> None:
    await checks.check("acme", small())
    (first,) = checks.pids
    leaving = asyncio.create_task(checks.check("acme", large))
    await until(lambda: set(checks.pids) - {first})
    (pid,) = set(checks.pids) - {first}
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert ended(pid)
    assert (await checks.check("other", large)).width == 8192


async def test_who_waits_too_long_may_come_again(large: bytes) -> None:
    checks = ImageChecks(wait_seconds=0.2)
    try:
        await checks.check("acme", small())
        judging = [asyncio.create_task(checks.check("acme", large)) for _ in range(4)]
        results = await asyncio.gather(*judging, return_exceptions=True)
        kinds = [one.kind for one in results if isinstance(one, MeshError)]
        assert kinds
        assert set(kinds) == {ErrorKind.UNAVAILABLE}
    finally:
        await checks.close()


async def test_children_know_no_secret_and_end_with_the_pool(
    checks: ImageChecks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATELIER_AUTH_SECRET", "x" * 40)
    await checks.check("acme", small())
    (pid,) = checks.pids
    assert not [name for name in psutil.Process(pid).environ() if name.startswith("ATELIER_")]
    await checks.close()
    assert ended(pid)


def test_children_end_with_their_parent() -> None:
    program = (
        "import asyncio, os\n"
        "from meshkit.images.checks import ImageChecks\n"
        "async def main():\n"
        "    checks = ImageChecks()\n"
        "    try:\n"
        "        await checks.check('acme', b'nothing')\n"
        "    except Exception:\n"
        "        print(*checks.pids, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 1, done.stderr
    psutil.wait_procs([psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)], timeout=30)
    assert all(ended(pid) for pid in pids)
