"""What a request to train must fulfil beyond the contract's own rules."""

from __future__ import annotations

from collections.abc import Sequence

from atelier.training.v1 import training_pb2
from google.protobuf.json_format import MessageToDict

from meshkit.errors import invalid
from services.training.trainer.dataset.transforms import parse_transforms

PATH = "training"


def check_request(wanted: training_pb2.CreateTraining, models: Sequence[str]) -> None:
    """Refuse what no trainer could do.

    Args:
        wanted: The training, its defaults filled in.
        models: Names of the base models that trainers have; none where that is not known.

    Raises:
        MeshError: `INVALID` with the member's path.
    """
    if not wanted.trigger_word.strip():
        raise invalid(f"{PATH}.trigger_word", "should have at least 1 character beside spaces", "too_short")
    by_prompt = training_pb2.CAPTIONING_STRATEGY_PROMPT
    if wanted.preprocessing_captioning_strategy == by_prompt and not wanted.preprocessing_captioning_prompt:
        text = "Field required where preprocessing_captioning_strategy is prompt"
        raise invalid(f"{PATH}.preprocessing_captioning_prompt", text, "missing")
    if models and wanted.base_model_path not in models:
        raise invalid(
            f"{PATH}.base_model_path",
            f"No trainer of this installation has {wanted.base_model_path!r}; they have {', '.join(models)}",
            "model_not_served",
        )
    given = [MessageToDict(one) for one in wanted.preprocessing_transforms]
    parse_transforms(given, path=f"{PATH}.preprocessing_transforms")
