"""The version before: what an installation runs that is upgraded."""

import io
import os
import subprocess
import tarfile
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
_NEEDED = (
    *("atelier_cli", "meshkit", "modelkit", "models", "services", "gen", "proto", "third_party", "buf.yaml"),
    ":(exclude)models/*/weights",
)


def last_release() -> str:
    """Name the commit of the last release: `LAST_RELEASE`, else the newest tag, else what `pyproject.toml` says."""
    if named := os.environ.get("LAST_RELEASE"):
        return named
    tagged = _git("describe", "--tags", "--abbrev=0", "--match", "v[0-9]*", "HEAD^")
    if tagged.returncode == 0:
        return tagged.stdout.decode().strip()
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return str(settings["tool"]["atelier"]["last-release"])


def unpack_last_release(folder: Path) -> Path:
    """Write its sources into a folder; skip the test where the history does not have it.

    Args:
        folder: Made where it is missing.
    """
    release = last_release()
    archive = _git("archive", "--format=tar", release, *_NEEDED)
    if archive.returncode != 0:
        pytest.skip(f"the history of this checkout does not have the last release, {release}: fetch all of it")
    folder.mkdir(exist_ok=True)
    folder.chmod(0o755)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as packed:
        packed.extractall(folder, filter="data")
    return folder


def _git(*arguments: str) -> "subprocess.CompletedProcess[bytes]":
    try:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    except FileNotFoundError:
        return subprocess.CompletedProcess(arguments, 127, b"", b"")
