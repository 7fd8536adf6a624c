"""What this release serves: task types, their inputs and prefixes, providers, queues.

Adding a type to the service is adding one entry here; everything else follows from the contract.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from atelier.tasks.v1 import enums_pb2, task_pb2

from meshkit.errors import invalid
from meshkit.spelling import value_names

LOCAL = "LOCAL"


@dataclass(frozen=True, slots=True)
class ImageInput:
    """An image that a caller gives.

    Attributes:
        name: Name of the object that data becomes, without an extension.
        sources: Fields of the Create message that may carry it; the first that is set counts.
        public: Field of the public message that shows where it lies.
    """

    name: str
    sources: tuple[str, ...]
    public: str


@dataclass(frozen=True, slots=True)
class TypeEntry:
    """A task type.

    Attributes:
        name: Spelling of the type.
        field: Its field in the `detail` of CreateTask, Task and TaskResult.
        prefix: First folder of its objects.
        expected_seconds: Device seconds that an attempt is expected to take; what its lease is charged.
        timeout_seconds: How long one attempt may run.
        served: Whether this release executes it.
        images: Images among its inputs.
        adapters: Fields that name LoRA adapters.
        seeds: Fields that are drawn where absent.
    """

    name: str
    field: str
    prefix: str
    expected_seconds: float = 5.0
    timeout_seconds: float = 1800.0
    served: bool = False
    images: tuple[ImageInput, ...] = ()
    adapters: tuple[str, ...] = ()
    seeds: tuple[str, ...] = ()


_LORA_FIELDS = ("subject_model_path", "product_model_path", "style_model_path", "product2_model_path")

TYPES: Mapping[str, TypeEntry] = MappingProxyType(
    {
        entry.name: entry
        for entry in (
            TypeEntry(
                "GENERATION",
                "generation",
                "generations",
                served=True,
                images=(
                    ImageInput("reference", ("reference_image_data", "reference_image_url"), "reference_image_path"),
                ),
                adapters=_LORA_FIELDS,
                seeds=("seed",),
            ),
            TypeEntry("EDITING", "editing", "editings"),
            TypeEntry("REFINE", "refine", "refines"),
            TypeEntry("VIDEO_GENERATION", "video_generation", "videos", expected_seconds=60.0, timeout_seconds=7200.0),
            TypeEntry("LLM_INTERACTION", "llm_interaction", "llm"),
            TypeEntry("BACKGROUND_REMOVE", "background_remove", "backgrounds", expected_seconds=2.0),
            TypeEntry("DETAIL_ENHANCER", "detail_enhancer", "details"),
            TypeEntry("BACKGROUND_FIX", "background_fix", "backgrounds", expected_seconds=2.0),
            TypeEntry(
                "IMAGE_ADJUSTER",
                "image_adjuster",
                "adjustments",
                expected_seconds=0.5,
                timeout_seconds=600.0,
                served=True,
                images=(
                    ImageInput("input", ("input_image",), "input_image_path"),
                    ImageInput("reference", ("reference_image",), "reference_image_path"),
                ),
            ),
            TypeEntry("FACE_ENHANCER", "face_enhancer", "faces"),
            TypeEntry("EXPERIMENTAL_FAL", "experimental_fal", "fal"),
            TypeEntry("NOOP", "noop", "noops", expected_seconds=0.1, timeout_seconds=3600.0),
        )
    }
)

FIELDS: Mapping[str, TypeEntry] = MappingProxyType({entry.field: entry for entry in TYPES.values()})

# Queue of a provider's work where the caller names none.
QUEUE_OF_PROVIDER: Mapping[str, str] = MappingProxyType(
    {
        LOCAL: "inference",
        "FAL_STANDARD": "fal",
        "FAL_SHOOTIFY_REFINER": "fal",
        "FAL_GARMENT_FIXER": "fal",
        "FASHN_STANDARD": "fashn",
        "FREEPIK_MAGNIFIC": "freepik",
        "FREEPIK_MAGNIFIC_PRECISION": "freepik",
        "VERTEX": "vertex",
        "AI_CORE": "ai_core",
        "NANO_BANANA_UPSCALER": "vertex",
        "SARTIQ_ULTIMATE_REFINER": "inference",
        "SARTIQ_ULTIMATE_GARMENT_FIXER": "inference",
        "SARTIQ_ULTIMATE_FACE_FIXER": "inference",
    }
)

QUEUES = frozenset({"inference", "training", "fal", "fashn", "freepik", "vertex", "ai_core"})

# What the providers of this release can do, for those types they execute.
CAPABILITIES: Mapping[str, frozenset[str]] = MappingProxyType(
    {LOCAL: frozenset({"TEXT_TO_IMAGE", "IMAGE_TO_IMAGE", "LORA", "SEED", "OUTPUT_SIZE", "BATCH"})}
)


class Catalog:
    """What is served.

    Args:
        enable_noop: Whether NOOP tasks are taken.
    """

    def __init__(self, *, enable_noop: bool = False) -> None:
        served = {name for name, entry in TYPES.items() if entry.served}
        if enable_noop:
            served.add("NOOP")
        self.served_types = frozenset(served)
        self.costs = {
            f"{entry.name}/{provider}": entry.expected_seconds
            for entry in TYPES.values()
            for provider in QUEUE_OF_PROVIDER
        }

    def type_of(self, task: task_pb2.CreateTask) -> TypeEntry:
        """Return the type of a task that a caller asks for.

        Raises:
            MeshError: `INVALID` where this release does not serve it.
        """
        field = task.WhichOneof("detail")
        if field is None:
            raise invalid("task.task_type", f"Field required; one of {', '.join(self.public_types)}", "missing")
        entry = FIELDS[field]
        if entry.name not in self.served_types:
            raise invalid(
                "task.task_type",
                f"Tasks of type {entry.name} are not served; this installation serves {', '.join(self.public_types)}",
                "task_type_not_served",
            )
        return entry

    @property
    def public_types(self) -> list[str]:
        """The served types that the document knows, in its order."""
        return [name for name in TYPES if name in self.served_types and name != "NOOP"]

    def provider_of(self, number: int, path: str) -> str:
        """Spelling of a provider that this release calls.

        Args:
            number: Number of the ProviderType; 0 means LOCAL.
            path: Path of the field, for the error.

        Raises:
            MeshError: `INVALID` where this release does not call it.
        """
        name = value_names(enums_pb2.ProviderType.DESCRIPTOR)[number] if number else LOCAL
        if name not in CAPABILITIES:
            raise invalid(
                path,
                f"Provider {name} is not served; this installation serves {', '.join(sorted(CAPABILITIES))}",
                "provider_type_not_served",
            )
        return name

    def queue_of(self, name: str | None, provider: str) -> str:
        """Return the queue of a task.

        Args:
            name: What the caller named, if anything.
            provider: Spelling of the provider.

        Raises:
            MeshError: `INVALID` where no such queue is registered.
        """
        queue = name or QUEUE_OF_PROVIDER[provider]
        if queue not in QUEUES:
            raise invalid(
                "task.queue_name", f"Unknown queue {queue!r}; one of {', '.join(sorted(QUEUES))}", "unknown_queue"
            )
        return queue

    @staticmethod
    def check_capabilities(names: list[str], provider: str, path: str) -> None:
        """Refuses capabilities that the provider does not have.

        Raises:
            MeshError: `INVALID` naming the first of them.
        """
        for index, name in enumerate(names):
            if name not in CAPABILITIES.get(provider, frozenset()):
                raise invalid(
                    f"{path}[{index}]",
                    f"Provider {provider} has no capability {name!r}; "
                    f"it has {', '.join(sorted(CAPABILITIES[provider]))}",
                    "unknown_capability",
                )


def prefix_of(task_type: str, task_id: object) -> str:
    """Folder of a task's objects, ending in `/`."""
    return f"{TYPES[task_type].prefix}/{task_id}/"
