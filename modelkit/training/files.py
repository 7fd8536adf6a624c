"""Write files and folders that appear whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path


def put_file(path: Path, write: Callable[[Path], None]) -> Path:
    """Have a file written beside its place, sync it, and rename it into its place.

    Args:
        path: Its place.
        write: Writes the file that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    write(fresh)
    _sync(fresh)
    fresh.replace(path)
    _sync(path.parent)
    return path


def put_folder(path: Path, fill: Callable[[Path], None]) -> Path:
    """Have a folder filled beside its place, sync its files, and rename it into its place.

    Args:
        path: Its place; a folder that is there is replaced.
        fill: Writes files into the folder that it is given.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(f".{path.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    fill(fresh)
    for file in fresh.iterdir():
        _sync(file)
    _sync(fresh)
    if path.exists():
        shutil.rmtree(path)
    fresh.rename(path)
    _sync(path.parent)
    return path


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
