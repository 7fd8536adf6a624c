"""Which stored files tasks and workflows ended with, and the names that they get on this machine."""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Final

from atelier_cli.client import Gateway
from atelier_cli.errors import CliError
from meshkit.catalog import TASK_TYPES

_SEVERAL: Final = 2


def stored_paths(task_type: str, result: Mapping[str, Any]) -> list[str]:
    """Return the paths in storage of what a task of that type ended with.

    Args:
        task_type: Its type.
        result: The task, or a step's result: both show the outputs by the same names.
    """
    known = TASK_TYPES.get(task_type)
    found: list[str] = []
    for output in known.outputs if known else ():
        value = result.get(output.field)
        found += [path for path in (value if isinstance(value, list) else [value]) if path]
    return found


def task_files(task: Mapping[str, Any], folder: Path) -> dict[Path, str]:
    """Return where the files of a task go, with their paths in storage.

    Raises:
        CliError: It has none.
    """
    if task["status"] != "COMPLETED":
        raise CliError(f"Task {task['id']} is {task['status']}; only a COMPLETED task has files.")
    paths = stored_paths(task["task_type"], task)
    if not paths:
        raise CliError(f"Task {task['id']} has no files: {task['task_type']} makes none, or they are cleaned up.")
    return _named(folder, str(task["id"]), paths)


def workflow_files(workflow: Mapping[str, Any], folder: Path) -> dict[Path, str]:
    """Return where the files of a workflow's steps go, with their paths in storage.

    A file has the name of its step, with a number where the step made several.
    """
    files: dict[Path, str] = {}
    for step in workflow["steps"]:
        result = step.get("result") or {}
        parts = result["items"] if isinstance(result.get("items"), list) else [result]
        paths = [path for part in parts if part for path in stored_paths(step["task_type"], part)]
        files |= _named(folder, PurePosixPath(step["step_id"]).name, paths)
    return files


def download_all(gateway: Gateway, files: Mapping[Path, str]) -> Iterator[Path]:
    """Save files, and yield each place once it is written.

    Raises:
        CliError: One cannot be fetched or written.
    """
    for place, path in files.items():
        gateway.download(path, place)
        yield place


def require_folder(folder: Path) -> None:
    """Make a folder for files.

    Raises:
        CliError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CliError(f"The folder {folder} cannot be made: {error.strerror}.") from error


def _named(folder: Path, stem: str, paths: list[str]) -> dict[Path, str]:
    if len(paths) < _SEVERAL:
        return {folder / f"{stem}{PurePosixPath(path).suffix}": path for path in paths}
    digits = len(str(len(paths)))
    return {
        folder / f"{stem}-{number:0{digits}d}{PurePosixPath(path).suffix}": path
        for number, path in enumerate(paths, start=1)
    }
