"""A request of each task type that the device executes, long enough to be stopped in the middle."""

import base64
import io
from pathlib import Path
from typing import Any

import httpx
from PIL import Image

_PHOTO = Path(__file__).parents[1] / "unit" / "modelkit" / "data" / "astronaut.jpg"


def photo(side: int = 256) -> Image.Image:
    """A portrait, `side` pixels wide."""
    with Image.open(_PHOTO) as image:
        return image.convert("RGB").resize((side, side * image.height // image.width), Image.Resampling.LANCZOS)


def data_url(image: Image.Image, form: str = "PNG", **save: Any) -> str:
    """A picture as text."""
    out = io.BytesIO()
    image.save(out, form, **save)
    return f"data:image/{form.lower()};base64,{base64.b64encode(out.getvalue()).decode()}"


# The member of each type that takes a picture; None where the type takes none. Lists have one element.
IMAGE_FIELDS: dict[str, str | None] = {
    "GENERATION": "reference_image_data",
    "EDITING": "base_image",
    "REFINE": "base_image_url",
    "VIDEO_GENERATION": "input_image_data",
    "LLM_INTERACTION": None,
    "BACKGROUND_REMOVE": "input_image_paths",
    "DETAIL_ENHANCER": "base_image",
    "BACKGROUND_FIX": "base_image",
    "FACE_ENHANCER": "input_image",
    "IMAGE_ADJUSTER": "input_image",
    "PHOTO_DETECTION": "input_image",
}
# These take storage paths and addresses, and no picture as text.
STORED = frozenset({"REFINE", "BACKGROUND_REMOVE"})

_FIELDS: dict[str, dict[str, Any]] = {
    "GENERATION": {"prompt": "a red dress", "width": 256, "height": 256, "seed": 1},
    "EDITING": {"prompt": "make it blue", "width": 256, "height": 256, "seed": 1},
    "REFINE": {"upscale_factor": 2, "upscale_denoise": 0},
    "VIDEO_GENERATION": {
        "prompt": "the dress sways",
        "duration_seconds": 2,
        "config": {"width": 64, "height": 64, "steps": 30},
    },
    "LLM_INTERACTION": {"prompt": "Tell a long story about a tailor.", "config": {"max_tokens": 300}},
    "BACKGROUND_REMOVE": {"provider_config": {"provider_type": "LOCAL", "rembg_model": "u2netp"}},
    "DETAIL_ENHANCER": {},
    "BACKGROUND_FIX": {},
    "FACE_ENHANCER": {},
    "IMAGE_ADJUSTER": {"target_width": 512, "target_height": 512, "mode": "pad", "margin_left": 0.1},
    "PHOTO_DETECTION": {},
}
_SECOND_PICTURES = {"DETAIL_ENHANCER": "reference_image", "BACKGROUND_FIX": "palette_image"}


def body(task_type: str, picture: str | None = None) -> dict[str, Any]:
    """A request of a type.

    Args:
        task_type: Its spelling.
        picture: The picture, as text or as a path in storage; a type that takes none ignores it.
    """
    made = {"task_type": task_type, "origin_instance": "e2e", **_FIELDS[task_type]}
    field = IMAGE_FIELDS[task_type]
    if field is not None and picture is not None:
        made[field] = [picture] if field.endswith("s") else picture
    if second := _SECOND_PICTURES.get(task_type):
        made[second] = data_url(photo(128))
    return made


def stored_picture(client: httpx.Client, path: str) -> Image.Image:
    """Read a picture of the caller's storage."""
    answer = client.get(f"/api/v1/storage/images/{path}")
    assert answer.status_code == 200, answer.text
    with Image.open(io.BytesIO(answer.content)) as image:
        image.load()
        return image
