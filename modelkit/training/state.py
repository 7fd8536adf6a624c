"""The state that a run goes on from exactly: weights, optimiser, random numbers, position.

It is tensors and JSON, never a pickle: it comes back from a store.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from modelkit.errors import ModelErrorKind
from modelkit.training.errors import TrainingFailed
from modelkit.training.files import put_folder

_TENSORS, _FACTS = "tensors.safetensors", "state.json"
_FORM = 1
_KEPT = 2


@dataclass(frozen=True, slots=True)
class RunState:
    """A state.

    Attributes:
        facts: What is no tensor: step, position, what was sampled and saved, and what the run is bound to.
        weights: What is trained, by name.
        optimizer: The optimiser's `state_dict`.
        random: States of the generators.
    """

    facts: Mapping[str, Any]
    weights: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, Any]
    random: Mapping[str, Any]


def write_state(folder: Path, step: int, state: RunState) -> Path:
    """Write a state below `folder` and delete all but the newest two; return its own folder."""
    optimizer, tensors = _taken_apart(state.optimizer)
    tensors = {f"optimizer.{name}": tensor for name, tensor in tensors.items()}
    tensors |= {f"weights.{name}": tensor for name, tensor in state.weights.items()}
    draws, drawn = _taken_apart(state.random)
    tensors |= {f"random.{name}": tensor for name, tensor in drawn.items()}
    facts = {"form": _FORM, "facts": dict(state.facts), "optimizer": optimizer, "random": draws}

    def fill(fresh: Path) -> None:
        save_file({name: tensor.cpu().contiguous().clone() for name, tensor in tensors.items()}, fresh / _TENSORS)
        (fresh / _FACTS).write_text(json.dumps(facts), "utf-8")

    path = put_folder(folder / f"step-{step:09d}", fill)
    for old in sorted(folder.glob("step-*"))[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    return path


def read_state(folder: Path) -> RunState:
    """Read a state.

    Raises:
        TrainingFailed: It is not one.
    """
    try:
        tensors = load_file(folder / _TENSORS)
        facts = json.loads((folder / _FACTS).read_text("utf-8"))
        if facts["form"] != _FORM:
            raise ValueError("form")
        return RunState(
            facts["facts"],
            _below("weights.", tensors),
            _put_together(facts["optimizer"], _below("optimizer.", tensors)),
            _put_together(facts["random"], _below("random.", tensors)),
        )
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise TrainingFailed(
            ModelErrorKind.RESOURCE, "The state to resume the training from could not be read."
        ) from error


def random_state() -> dict[str, Any]:
    """Return the states of the process's own generators: Python's, NumPy's, torch's, and CUDA's where there is one."""
    version, numbers, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "python": {"version": version, "numbers": list(numbers), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64).copy()),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached": float(cached),
        },
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def restore_random(state: Mapping[str, Any]) -> None:
    """Take what `random_state` returned; CUDA's where there are as many devices."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["numbers"]), python["gauss"]))
    np.random.set_state(
        (
            numpy["kind"],
            numpy["keys"].numpy().astype(np.uint32),
            numpy["position"],
            numpy["has_gauss"],
            numpy["cached"],
        )
    )
    torch.set_rng_state(state["torch"])
    cuda = state.get("cuda", [])
    if torch.cuda.is_available() and len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)


def _below(prefix: str, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _taken_apart(value: Any) -> tuple[Any, dict[str, torch.Tensor]]:
    """Return a nested value as JSON that names its tensors, and these."""
    tensors: dict[str, torch.Tensor] = {}

    def walk(part: Any) -> Any:
        if isinstance(part, torch.Tensor):
            name = str(len(tensors))
            tensors[name] = part
            return {"tensor": name}
        if isinstance(part, Mapping):
            # JSON has no keys that are numbers, which an optimiser's state has.
            return {"pairs": [[key, walk(member)] for key, member in part.items()]}
        if isinstance(part, list | tuple):
            return {"list": [walk(member) for member in part], "tuple": isinstance(part, tuple)}
        return {"plain": part}

    return walk(value), tensors


def _put_together(value: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "pairs" in value:
        return {key: _put_together(member, tensors) for key, member in value["pairs"]}
    if "list" in value:
        members = [_put_together(member, tensors) for member in value["list"]]
        return tuple(members) if value["tuple"] else members
    return value["plain"]
