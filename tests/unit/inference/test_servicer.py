import asyncio

from atelier.inference.v1.child_pb2 import ChildProgress

from services.inference.servicer import _LatestProgress


async def test_a_reader_that_is_slow_gets_the_newest_alone() -> None:
    newest = _LatestProgress()
    for step in range(1000):
        preview, text = (b"jpeg", "a red") if step == 400 else (b"", "")
        newest.put(ChildProgress(step=step, preview=preview, text=text))
    report = await newest.get()
    assert report is not None
    assert (report.step, report.preview, report.text) == (999, b"jpeg", "a red")


async def test_the_last_report_is_read_before_the_end() -> None:
    newest = _LatestProgress()
    newest.put(ChildProgress(step=5))
    newest.end()
    report = await newest.get()
    assert report is not None
    assert report.step == 5
    assert await newest.get() is None


async def test_a_reader_waits_for_what_comes_next() -> None:
    newest = _LatestProgress()
    reading = asyncio.ensure_future(newest.get())
    await asyncio.sleep(0)
    assert not reading.done()
    newest.put(ChildProgress(step=1))
    report = await reading
    assert report is not None
    assert report.step == 1
