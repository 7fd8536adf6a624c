"""What a part of the check is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bench.stacks import ROOT, Stack

SHIPPED = ROOT / "models" / "garments" / "weights"
MODEL_NAME = "flux-dev-sized"
LORAS = ("first", "second")


class PartError(Exception):
    """A part found something wrong, or cannot run here; the text goes into the table."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table.

    Attributes:
        name: What was measured.
        value: The number.
        unit: Its unit.
        note: What a reader must know beside it.
    """

    name: str
    value: float
    unit: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class Scale:
    """How large everything is.

    Attributes:
        name: Its name on the command line.
        compared: Pictures of the shipped model that are compared with the CPU's.
        pictures: Pictures for each size of batch.
        batches: Sizes of batches.
        shipped_steps: Steps of a picture of the shipped model; its card's default where None.
        blocker_steps: Steps of a picture that holds the device while others queue behind it.
        side: Side of the large model's pictures in pixels.
        steps: Numbers of steps; seconds a step are the difference in time, divided by the difference in steps.
        rounds: Times that each time is taken; the median counts.
    """

    name: str
    compared: int
    pictures: int
    batches: tuple[int, ...]
    shipped_steps: int | None
    blocker_steps: int
    side: int
    steps: tuple[int, int]
    rounds: int


SCALES = {
    "full": Scale(
        name="full",
        compared=8,
        pictures=32,
        batches=(1, 4, 8),
        shipped_steps=None,
        blocker_steps=50,
        side=1024,
        steps=(2, 10),
        rounds=3,
    ),
    "tiny": Scale(
        name="tiny",
        compared=2,
        pictures=8,
        batches=(1, 4, 8),
        shipped_steps=2,
        blocker_steps=50,
        side=64,
        steps=(1, 3),
        rounds=2,
    ),
}


@dataclass(frozen=True, slots=True)
class RunningMesh:
    """The mesh that pictures go through.

    Attributes:
        stack: Its gateway and its processes.
        s3_endpoint: host:port of its object store.
        s3_access_key: Access key of the store.
        s3_secret_key: Secret key of the store.
    """

    stack: Stack
    s3_endpoint: str
    s3_access_key: str
    s3_secret_key: str


@dataclass(frozen=True, slots=True)
class Setting:
    """What a part is given.

    Attributes:
        device: A torch device: `cuda` or `cpu`.
        scale: How large everything is.
        folder: Folder of this run; the large model is written into it.
        mesh: The mesh, for parts that ask for it.
    """

    device: str
    scale: Scale
    folder: Path
    mesh: RunningMesh | None = None

    @property
    def running_mesh(self) -> RunningMesh:
        """The mesh; only parts that are registered with `uses_mesh` have one."""
        assert self.mesh is not None, "the part is registered without uses_mesh"
        return self.mesh

    @property
    def model(self) -> Path:
        """Folder of the large model."""
        return self.folder / MODEL_NAME

    def lora(self, name: str) -> Path:
        """File of one of the large model's LoRAs."""
        return self.folder / f"{name}.safetensors"
