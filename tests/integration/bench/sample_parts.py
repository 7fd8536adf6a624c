"""Parts that go well and wrong, for tests of what runs them. Each runs in a process of its own."""

import os
import time
from collections.abc import Iterator

from bench.gpu.setting import Figure, PartError, Setting


def works(setting: Setting) -> Iterator[Figure]:
    yield Figure("process", os.getpid(), "", setting.device)
    yield Figure("twice", 2.0, "s")


def finds_a_fault(setting: Setting) -> Iterator[Figure]:
    yield Figure("before", 1.0, "s")
    raise PartError("The picture is green.")


def raises(setting: Setting) -> Iterator[Figure]:
    yield Figure("before", 1.0, "s")
    raise ZeroDivisionError("by\nnothing")


def dies(setting: Setting) -> Iterator[Figure]:
    yield Figure("before", 1.0, "s")
    os._exit(7)


def hangs(setting: Setting) -> Iterator[Figure]:
    yield Figure("before", 1.0, "s")
    time.sleep(3600)


def is_left_alone(setting: Setting) -> Iterator[Figure]:
    yield Figure("process", os.getpid(), "")
    time.sleep(3600)


def uses_mesh(setting: Setting) -> Iterator[Figure]:
    yield Figure("mesh", len(setting.running_mesh.s3_endpoint), "")


def fails_on_mesh(setting: Setting) -> Iterator[Figure]:
    yield Figure("mesh", len(setting.running_mesh.s3_endpoint), "")
    raise PartError("The worker is gone.")
