"""The family of video models: clips of a picture and a prompt, by the LTX and Wan pipelines of diffusers."""

from __future__ import annotations

import json
import threading
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import diffusers
import numpy as np
import structlog
import torch
import transformers
from PIL import Image

from modelkit import sizes
from modelkit.card import ModelCard
from modelkit.device import Device
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.frames import FrameAutoencoder
from modelkit.weights import memory_of, stored_numbers

if TYPE_CHECKING:
    from modelkit.clips import Frame
    from modelkit.requests import ProgressObserver

_log = structlog.get_logger(module=__name__)
_PIPELINES = {"ltx": "LTXImageToVideoPipeline", "wan": "WanImageToVideoPipeline"}
# Both libraries write progress bars and advice to stderr. Failures reach the worker as exceptions.
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class _ClipCancelled(Exception):  # noqa: N818 -- it ends a call of the pipeline, and is no error
    """Raised between two steps."""


@dataclass(frozen=True, slots=True)
class ClipRequest:
    """A clip that is asked for.

    Attributes:
        prompt: What happens in it.
        still: The picture it begins with, (H, W, 3) RGB of the clip's size.
        seconds: Its length.
        seed: Seed of its noise.
        observer: Observer of its progress.
        negative_prompt: What it is not to show; the card's where None.
        steps: Denoising steps; the card's where None.
        guidance: How closely the prompt is followed, as a multiple of the card's own scale.
    """

    prompt: str
    still: Frame
    seconds: float
    seed: int
    observer: ProgressObserver
    negative_prompt: str | None = None
    steps: int | None = None
    guidance: float = 1.0


@dataclass(frozen=True, slots=True)
class Keyframes:
    """What a model drew.

    Attributes:
        frames: Pictures, (h, w, 3) RGB of the clip's aspect, evenly over its length.
        enlarge: The clip is larger than they are.
        cut_tokens: Number of the prompt's tokens beyond the model's limit; the model did not read them.
    """

    frames: list[Frame]
    enlarge: bool
    cut_tokens: int


class VideoFamily:
    """Loads video models from diffusers folders."""

    packaged: tuple[ModelCard, ...] = ()

    def matches(self, card: ModelCard) -> bool:
        """Take every model whose card says `ltx` or `wan`."""
        return card.architecture in _PIPELINES

    def size(self, source: Source, device: Device) -> int:
        """Count the weights in the headers of the files."""
        folder = _folder(source)
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        parts = [part for part, kind in index.items() if kind and (folder / part).is_dir()]
        return sum(stored_numbers(folder / part) for part in parts) * device.dtype.itemsize

    def load(self, source: Source, device: Device) -> VideoModel:
        """Load a model onto the device, in the device's type of numbers."""
        folder, card = _folder(source), source.card
        how: dict[str, Any] = {"dtype": device.dtype, "local_files_only": True, "use_safetensors": True}
        try:
            kind = getattr(diffusers, _PIPELINES[card.architecture])
            if _part_of(folder, "vae") == "AutoencoderKL":
                pictures = diffusers.AutoencoderKL.from_pretrained(str(folder / "vae"), **how)
                others = kind.from_pretrained(str(folder), vae=None, **how).components
                pipe = kind(**{**others, "vae": FrameAutoencoder(pictures)})
            else:
                pipe = kind.from_pretrained(str(folder), **how)
        except torch.cuda.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            _log.error("model_load_failed", model=card.name, family="video", exc_info=error)
            raise ModelError(
                f"The model {card.name} could not be loaded on this worker.", ModelErrorKind.RESOURCE
            ) from error
        return VideoModel(pipe.to(device.name), card)


def _part_of(folder: Path, part: str) -> str:
    """Name the class of a part of a pipeline."""
    kind = json.loads((folder / "model_index.json").read_text("utf-8")).get(part)
    return str(kind[1]) if isinstance(kind, list) and len(kind) > 1 else ""


def _folder(source: Source) -> Path:
    if source.folder is None or not (source.folder / "model_index.json").is_file():
        raise ModelError("The model of this worker is not a diffusers folder.", ModelErrorKind.RESOURCE)
    return source.folder


class VideoModel:
    """One pipeline with its card. Safe to share between threads, which take turns.

    Args:
        pipe: The pipeline, on its device.
        card: The model's limits.
    """

    labels: tuple[str, ...] = ()

    def __init__(self, pipe: Any, card: ModelCard) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.card = card
        self._pipe = pipe
        self._holdings: Mapping[Hashable, int] = memory_of(
            part for part in pipe.components.values() if isinstance(part, torch.nn.Module)
        )
        self._lock = threading.Lock()

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of the weights by their addresses."""
        return self._holdings

    def close(self) -> None:
        """Release all weights. The model is not used again."""
        with self._lock:
            self._pipe = None
            self._holdings = {}

    def keyframes(self, request: ClipRequest) -> Keyframes | None:
        """Draw the keyframes of a clip; None where it was cancelled.

        Raises:
            ModelError: A setting is out of the card's range, or the device has too little memory.
        """
        height, width = request.still.shape[:2]
        plan = sizes.plan(self.card, width, height)
        steps = request.steps or self.card.steps.default
        if not self.card.steps.min <= steps <= self.card.steps.max:
            raise ModelError(
                f"The model {self.card.name} takes {self.card.steps.min} to {self.card.steps.max} steps, not {steps}."
            )
        canvas, box = placed(request.still, plan.width, plan.height)
        with self._lock:
            try:
                # A small model spends half its time on autograd's bookkeeping, which this mode leaves out.
                with torch.inference_mode():
                    drawn = self._call(request, canvas, steps)
            except _ClipCancelled:
                return None
            except torch.cuda.OutOfMemoryError as error:
                raise ModelError(
                    "The device has too little memory for a clip of this size and length.",
                    ModelErrorKind.RESOURCE,
                    retryable=True,
                ) from error
            cut = self._cut_tokens(request.prompt)
        left, top, right, bottom = box
        frames = [np.clip(one[top:bottom, left:right] * 255 + 0.5, 0, 255).astype(np.uint8) for one in drawn]
        return Keyframes(frames, right - left < width or bottom - top < height, cut)

    def _call(self, request: ClipRequest, canvas: Frame, steps: int) -> Any:
        total = steps

        def stepped(_pipe: Any, step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            request.observer.progress(step + 1, total)
            if request.observer.cancelled():
                raise _ClipCancelled
            return tensors

        if request.observer.cancelled():
            raise _ClipCancelled
        guidance = self.card.guidance
        negative = guidance.negative_prompt if request.negative_prompt is None else request.negative_prompt
        if self.card.architecture == "ltx":
            keywords: dict[str, Any] = {
                "prompt": request.prompt,
                "negative_prompt": negative,
                "frame_rate": self.card.video.frame_rate,
            }
        else:
            keywords = {
                "prompt_embeds": self._encoded(request.prompt),
                "negative_prompt_embeds": self._encoded(negative),
            }
        return self._pipe(
            image=Image.fromarray(canvas),
            height=canvas.shape[0],
            width=canvas.shape[1],
            num_frames=self.card.video.frames_of(request.seconds),
            num_inference_steps=steps,
            guidance_scale=guidance.scale_default * request.guidance,
            # The noise is drawn on the processor: it is the same on every device.
            generator=torch.Generator().manual_seed(request.seed),
            max_sequence_length=self.card.max_sequence_length,
            callback_on_step_end=stepped,
            output_type="np",
            **keywords,
        ).frames[0]

    def _encoded(self, text: str) -> torch.Tensor:
        """Return embeddings (1, tokens, width) as Wan's pipeline makes them, zero where the text is padded.

        Its own call would mend the text's letters by a package that is not needed here.
        """
        given = self._pipe.tokenizer(
            [text],
            padding="max_length",
            max_length=self.card.max_sequence_length,
            truncation=True,
            return_attention_mask=True,
            return_tensors="pt",
        )
        device = self._pipe.text_encoder.device
        mask = given.attention_mask.to(device)
        embeddings: torch.Tensor = self._pipe.text_encoder(given.input_ids.to(device), mask).last_hidden_state
        blanked: torch.Tensor = embeddings * mask[..., None]
        return blanked

    def _cut_tokens(self, prompt: str) -> int:
        if len(prompt.encode()) + 2 <= self.card.max_sequence_length:
            return 0  # a token is at least one byte; two more mark the start of a word and the end of the text
        return max(0, len(self._pipe.tokenizer(prompt).input_ids) - self.card.max_sequence_length)


def placed(picture: Frame, width: int, height: int) -> tuple[Frame, tuple[int, int, int, int]]:
    """Lay a picture whole onto a canvas of another aspect; its border is drawn out to fill what is left.

    Returns:
        The canvas, and where the picture lies on it: left, top, right, bottom.
    """
    scale = min(width / picture.shape[1], height / picture.shape[0])
    size = (
        min(width, max(1, round(picture.shape[1] * scale))),
        min(height, max(1, round(picture.shape[0] * scale))),
    )
    smaller = size[0] < picture.shape[1] or size[1] < picture.shape[0]
    drawn = cv2.resize(picture, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
    left, top = (width - size[0]) // 2, (height - size[1]) // 2
    canvas = cv2.copyMakeBorder(drawn, top, height - size[1] - top, left, width - size[0] - left, cv2.BORDER_REPLICATE)
    return np.asarray(canvas, np.uint8), (left, top, left + size[0], top + size[1])
