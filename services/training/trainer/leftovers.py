"""Objects that an attempt stored and could not tell of, because its process was killed: the next attempt removes them.

Objects of states, saves and datasets bear the number of their attempt, so that two attempts never write the same one.
"""

from __future__ import annotations

import re
from typing import Final

from atelier.training.v1.trainer_service_pb2 import TrainingSpec

from meshkit.errors import MeshError
from meshkit.logging import get_logger
from meshkit.objects import ObjectStore

_log = get_logger(__name__)

_PARTS: Final = ("state", "saves", "dataset")


def numbered(attempt: int, step: int) -> str:
    """Return the name of what an attempt makes at a step."""
    return f"{attempt}-{step:09d}"


async def remove_leftovers(objects: ObjectStore, spec: TrainingSpec, attempt: int) -> None:
    """Remove what earlier attempts have stored and the training does not know.

    Args:
        objects: The store.
        spec: The training.
        attempt: Number of the attempt that begins.
    """
    if attempt <= 1:
        return
    known = {*spec.resume.objects, *(save.path for save in spec.saves)}
    dataset = spec.dataset_manifest_path.rpartition("/")[0] if spec.HasField("dataset_manifest_path") else None
    removed = 0
    try:
        for part in _PARTS:
            prefix = f"{spec.folder}{part}/"
            async for info in objects.walk(spec.tenant, prefix):
                number = re.match(r"(\d+)[-/]", info.path.removeprefix(prefix))
                if number is None or int(number[1]) >= attempt or info.path in known:
                    continue
                if dataset is None or not info.path.startswith(f"{dataset}/"):
                    await objects.delete(spec.tenant, info.path)
                    removed += 1
    except MeshError as error:  # the end of the training's retention removes them too
        _log.warning("training_leftovers_left", job_id=spec.training_id, kind=error.kind.value)
    if removed:
        _log.info("training_leftovers_removed", job_id=spec.training_id, objects=removed)
