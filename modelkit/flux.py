"""The family of FLUX models: pictures from prompts, references and adapters, in batches, on any device."""

from __future__ import annotations

import json
import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import diffusers
import numpy as np
import structlog
import torch
import transformers
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image

from modelkit import sizes
from modelkit.adapters import Adapters
from modelkit.card import ModelCard
from modelkit.device import Device
from modelkit.errors import ModelError, ModelErrorKind
from modelkit.family import Source
from modelkit.masks import MaskedLatents, unchanged_outside
from modelkit.pictures import Fit, fit, framed
from modelkit.positions import keep_positions
from modelkit.previews import Previewer, Projection
from modelkit.requests import AdapterFile, BatchSettings, ImageRequest, Picture
from modelkit.upscale import Upscaler
from modelkit.weights import fingerprint, memory_of, stored_numbers

_log = structlog.get_logger(module=__name__)
_NEGATIVES_KEPT = 8  # a few megabytes each for the largest models
# Parts without adapters have no state of their own, so models with the same weights can share them.
_SHAREABLE = ("text_encoder_2", "vae")
# Both libraries write progress bars and advice to stderr. Failures reach the worker as exceptions.
diffusers.utils.logging.set_verbosity_error()
diffusers.utils.logging.disable_progress_bar()
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()


class _BatchShrunk(Exception):  # noqa: N818 -- it ends a call of the pipeline, and is no error
    """Raised between two steps, to go on without the cancelled requests."""

    def __init__(self, keep: list[int], latents: torch.Tensor, done: int) -> None:
        super().__init__()
        self.keep = keep
        self.latents = latents
        self.done = done


class FluxFamily:
    """Loads FLUX models from diffusers folders; parts of equal content are in memory once."""

    packaged: tuple[ModelCard, ...] = ()
    architecture: ClassVar[str] = "flux"
    # Of all families of this kind: an edit model often has the parts of the model that it was made from.
    _parts: ClassVar[WeakValueDictionary[str, torch.nn.Module]] = WeakValueDictionary()

    def matches(self, card: ModelCard) -> bool:
        """Take every model whose card says that it is of this architecture."""
        return card.architecture == self.architecture

    def size(self, source: Source, device: Device) -> int:
        """Count the weights in the headers of the files."""
        folder = _diffusers_folder(source)
        index = json.loads((folder / "model_index.json").read_text("utf-8"))
        parts = [part for part, kind in index.items() if kind and (folder / part).is_dir()]
        return sum(stored_numbers(folder / part) for part in parts) * device.dtype.itemsize

    def load(self, source: Source, device: Device) -> FluxModel:
        """Load a model, with the parts that a model in memory has already."""
        folder = _diffusers_folder(source)
        prints = {part: fingerprint(folder / part, device.name) for part in _SHAREABLE if (folder / part).is_dir()}
        shared = {part: self._parts[mark] for part, mark in prints.items() if mark in self._parts}
        model = self._model().load(folder, source.card, device=device, shared=shared)
        for part, mark in prints.items():
            self._parts[mark] = model.components[part]
        return model

    def _model(self) -> type[FluxModel]:
        return FluxModel


def _diffusers_folder(source: Source) -> Path:
    if source.folder is None or not (source.folder / "model_index.json").is_file():
        raise ModelError("The model of this worker is not a diffusers folder.", ModelErrorKind.RESOURCE)
    return source.folder


class FluxModel:
    """One FLUX pipeline with its card and adapters. Safe to share between threads, which take turns.

    Args:
        pipe: The pipeline, on its device.
        card: The model's limits.
    """

    pipeline: ClassVar[Any] = FluxPipeline

    def __init__(self, pipe: Any, card: ModelCard) -> None:
        pipe.set_progress_bar_config(disable=True)
        self.card = card
        self._pipe = pipe
        keep_positions(pipe.transformer)
        # Without a type of number, `from_pipe` turns the networks, which both share, into float32.
        self._from_image = FluxImg2ImgPipeline.from_pipe(pipe, dtype=pipe.dtype)
        self._from_image.set_progress_bar_config(disable=True)
        self._adapters = Adapters(pipe)
        self._projection = Projection(pipe.vae)
        self._negatives = _Negatives(card.max_sequence_length)
        self._holdings: Mapping[Hashable, int] = memory_of(self.components.values())
        self._lock = threading.Lock()

    @classmethod
    def load(
        cls, folder: Path, card: ModelCard, *, device: Device, shared: Mapping[str, torch.nn.Module] | None = None
    ) -> FluxModel:
        """Load a pipeline from its folder onto a device, in the device's type of numbers.

        Args:
            folder: A diffusers folder with safetensors weights.
            card: The model's limits.
            device: Device to load it onto.
            shared: Components that are in memory already, to use instead of the folder's own.

        Raises:
            ModelError: The folder holds no FLUX pipeline that loads.
        """
        try:
            pipe = cls.pipeline.from_pretrained(
                str(folder), dtype=device.dtype, local_files_only=True, use_safetensors=True, **(shared or {})
            )
        except torch.cuda.OutOfMemoryError:
            raise
        except (OSError, ValueError, RuntimeError, TypeError, KeyError) as error:
            _log.error("model_load_failed", model=card.name, family="flux", exc_info=error)
            raise ModelError(
                f"The model {card.name} could not be loaded on this worker.", ModelErrorKind.RESOURCE
            ) from error
        return cls(pipe.to(device.name), card)

    @property
    def components(self) -> dict[str, torch.nn.Module]:
        """The parts that hold weights, by their names in the pipeline."""
        return {name: part for name, part in self._pipe.components.items() if isinstance(part, torch.nn.Module)}

    @property
    def adapters(self) -> Adapters:
        """The adapters that are loaded."""
        return self._adapters

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels of the adapters that are loaded."""
        return self._adapters.labels

    def holdings(self) -> Mapping[Hashable, int]:
        """Return the bytes of the weights and adapters by their addresses, as the last batch left them."""
        return self._holdings

    @property
    def pipe(self) -> Any:
        """The diffusers pipeline, for training and measurements."""
        return self._pipe

    def generate(
        self, settings: BatchSettings, requests: Sequence[ImageRequest], upscaler: Upscaler
    ) -> list[Picture | None]:
        """Make a batch of pictures.

        Args:
            settings: Settings that they share.
            requests: The pictures.
            upscaler: Enlarges pictures that the model cannot draw at their size.

        Returns:
            A picture for each request, of exactly the requested size; None for a cancelled one.

        Raises:
            ModelError: A setting is out of the card's range, or an adapter does not fit.
        """
        plan = sizes.plan(self.card, settings.width, settings.height)
        steps = settings.steps or self.card.steps.default
        if not self.card.steps.min <= steps <= self.card.steps.max:
            raise ModelError(
                f"The model {self.card.name} takes {self.card.steps.min} to {self.card.steps.max} steps, not {steps}."
            )
        self.check(requests)
        if requests[0].reference is not None and settings.strength >= 1:
            return [self._kept(settings, request) for request in requests]
        with self._lock:
            self._adapt(settings.adapters)
            run = _Denoising(self, settings, plan, steps, requests)
            try:
                # A small model spends half its time on autograd's bookkeeping, which this mode leaves out.
                with torch.inference_mode():
                    drawn = run.images()
            except torch.cuda.OutOfMemoryError as error:
                raise ModelError(
                    "The device has too little memory for a picture of this size.",
                    ModelErrorKind.RESOURCE,
                    retryable=True,
                ) from error
        return [
            None if image is None else self._finish(image, settings, request, run.total, upscaler)
            for image, request in zip(drawn, requests, strict=True)
        ]

    def check(self, requests: Sequence[ImageRequest]) -> None:
        """Refuse requests that the model cannot serve.

        Raises:
            ModelError: They have more pictures than the model draws on.
        """
        if requests[0].others:
            raise ModelError(
                f"The model {self.card.name} takes no reference images; an edit model such as FLUX.1-Kontext does."
            )

    def conditions(self, requests: Sequence[ImageRequest], plan: sizes.SizePlan) -> dict[str, Any]:  # noqa: ARG002 -- for models that have some
        """Return what the pipeline's call takes beside prompts and noise."""
        return {}

    def start(
        self, settings: BatchSettings, requests: Sequence[ImageRequest], plan: sizes.SizePlan, keywords: dict[str, Any]
    ) -> Any:
        """Run the pipeline from its first step."""
        if requests[0].reference is None or settings.strength <= 0:
            return self._pipe(**keywords)
        how: Fit = "stretch" if settings.whole else "cover"
        references = [
            framed(request.reference.convert("RGB"), plan.width, plan.height, how)
            for request in requests
            if request.reference is not None
        ]
        return self._from_image(**keywords, image=references, strength=1 - settings.strength)

    def cut_tokens(self, prompt: str) -> int:
        """Count the tokens of a prompt that the long encoder does not read."""
        if len(prompt.encode()) + 2 <= self.card.max_sequence_length:
            return 0  # a token is at least one byte; two more mark the start of a word and the end of the text
        return max(0, len(self._pipe.tokenizer_2(prompt).input_ids) - self.card.max_sequence_length)

    def close(self) -> None:
        """Release all weights. The model is not used again."""
        with self._lock:
            self._adapters.clear()
            self._projection = None  # type: ignore[assignment] # a closed model is not used again
            self._negatives.clear()
            self._pipe = self._from_image = None
            self._holdings = {}

    def _adapt(self, files: Sequence[AdapterFile]) -> None:
        """Activate these adapters, and count memory again if the loaded ones have changed."""
        before = self._adapters.changes
        try:
            self._adapters.use(files)
        finally:
            if self._adapters.changes != before:
                self._holdings = memory_of(self.components.values())

    @staticmethod
    def _kept(settings: BatchSettings, request: ImageRequest) -> Picture | None:
        """Return the reference itself: at strength 1 all of it is kept."""
        if request.observer.cancelled() or request.reference is None:
            return None
        request.observer.progress(1, 1)
        return Picture(fit(request.reference, settings.width, settings.height), 0)

    def _finish(
        self, image: Image.Image, settings: BatchSettings, request: ImageRequest, total: int, upscaler: Upscaler
    ) -> Picture | None:
        size = (settings.width, settings.height)
        cut = self.cut_tokens(request.prompt)
        if image.size == size:
            return Picture(unchanged_outside(image, request), cut)
        how: Fit = "stretch" if settings.whole else "cover"
        if image.width >= size[0] and image.height >= size[1]:
            return Picture(unchanged_outside(framed(image, *size, how), request), cut)
        scale = max(size[0] / image.width, size[1] / image.height)
        # The upscaler cuts to the aspect, so a picture that keeps all of its own is brought to its aspect afterwards.
        grown = (round(image.width * scale), round(image.height * scale)) if settings.whole else size

        request.observer.upscaling()

        def tick(_done: int, _tiles: int) -> None:
            if request.observer.cancelled():
                raise _BatchShrunk([], torch.empty(0), total)
            request.observer.progress(total, total)

        try:
            large = framed(upscaler.enlarge(image, *grown, tick), *size, how)
        except _BatchShrunk:
            return None
        return Picture(unchanged_outside(large, request), cut)


class _Negatives:
    """Embeddings of negative prompts. Most are the card's, so each is encoded once.

    Args:
        length: Most tokens that the long encoder reads.
    """

    def __init__(self, length: int) -> None:
        self._length = length
        self._made: OrderedDict[str, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def embeddings(self, pipe: Any, texts: Sequence[str]) -> dict[str, torch.Tensor]:
        """Return these negative prompts as keywords of the pipeline's call."""
        made = [self._one(pipe, text) for text in texts]
        return {
            "negative_prompt_embeds": torch.cat([tokens for tokens, _ in made]),
            "negative_pooled_prompt_embeds": torch.cat([pooled for _, pooled in made]),
        }

    def clear(self) -> None:
        """Drop all embeddings."""
        self._made.clear()

    def _one(self, pipe: Any, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        if text not in self._made:
            tokens, pooled, _ = pipe.encode_prompt(
                prompt=[text],
                prompt_2=None,
                max_sequence_length=self._length,
                device=pipe._execution_device,  # noqa: SLF001 -- as its call does
            )
            self._made[text] = (tokens, pooled)
            if len(self._made) > _NEGATIVES_KEPT:
                self._made.popitem(last=False)
        self._made.move_to_end(text)
        return self._made[text]


class _Denoising:
    """The denoising of one batch.

    It runs the pipeline's own call. When a member is cancelled, the call ends between two steps, and a new call goes on
    with the others' latents and the remaining noise levels. The pictures are the same as without a cancel.
    """

    def __init__(
        self,
        model: FluxModel,
        settings: BatchSettings,
        plan: sizes.SizePlan,
        steps: int,
        requests: Sequence[ImageRequest],
    ) -> None:
        self._model = model
        self._pipe = model.pipe
        self._settings = settings
        self._plan = plan
        self._steps = steps
        self._requests = requests
        self._live = list(range(len(requests)))
        self._previewer = Previewer(model._projection)  # noqa: SLF001 -- one module
        # diffusers starts a reference's denoising at this step; without one, at 0.
        self._first = 0
        if requests[0].reference is not None and settings.strength > 0:
            self._first = int(max(steps - min(steps * (1 - settings.strength), steps), 0))
        self.total = steps - self._first
        self._masked = MaskedLatents.of(model.pipe, requests, plan.width, plan.height)

    def images(self) -> list[Image.Image | None]:
        """Run it; return one image a member, None for a cancelled one."""
        made: list[Image.Image | None] = [None] * len(self._requests)
        self._drop_cancelled()
        latents: torch.Tensor | None = None
        done = 0
        while self._live:
            try:
                images = self._call(latents, done)
            except _BatchShrunk as dropped:
                latents, done = dropped.latents, dropped.done
                self._live = dropped.keep
                continue
            self._drop_cancelled(images)
            for index, image in zip(self._live, images, strict=True):
                made[index] = image
            break
        return made

    def _drop_cancelled(self, images: list[Image.Image] | None = None) -> None:
        keep = [place for place, index in enumerate(self._live) if not self._requests[index].observer.cancelled()]
        self._live = [self._live[place] for place in keep]
        if images is not None:
            images[:] = [images[place] for place in keep]

    def _call(self, latents: torch.Tensor | None, done: int) -> list[Image.Image]:
        requests = [self._requests[index] for index in self._live]
        keywords: dict[str, Any] = {
            "prompt": [request.prompt for request in requests],
            "width": self._plan.width,
            "height": self._plan.height,
            "num_inference_steps": self._steps,
            # Each picture draws its noise on the processor: it is the same on every device and in every batch.
            "generator": [torch.Generator().manual_seed(request.seed) for request in requests],
            "max_sequence_length": self._model.card.max_sequence_length,
            "callback_on_step_end": lambda _pipe, step, _time, tensors: self._stepped(done + step + 1, tensors),
            "callback_on_step_end_tensor_inputs": ["latents"],
            **self._guidance(requests),
        }
        keywords.update(self._model.conditions(requests, self._plan))
        if latents is not None:
            # The noise levels of FluxPipeline, without those of the steps that are done.
            sigmas = np.linspace(1.0, 1 / self._steps, self._steps)[self._first + done :]
            result = self._pipe(**keywords, latents=latents, sigmas=sigmas)
        else:
            result = self._model.start(self._settings, requests, self._plan, keywords)
        images: list[Image.Image] = result.images
        return images

    def _guidance(self, requests: Sequence[ImageRequest]) -> dict[str, Any]:
        guidance, asked = self._model.card.guidance, self._settings.guidance_scale
        if guidance.embedded:
            keywords: dict[str, Any] = {"guidance_scale": guidance.scale_default if asked is None else asked}
            true_cfg = guidance.true_cfg_scale
        else:
            keywords = {"guidance_scale": guidance.scale_default}
            true_cfg = guidance.true_cfg_scale if asked is None else asked
        if true_cfg > 1:
            keywords["true_cfg_scale"] = true_cfg
            texts = [
                guidance.negative_prompt if request.negative_prompt is None else request.negative_prompt
                for request in requests
            ]
            if self._settings.adapters:  # they may change the text encoders too
                keywords["negative_prompt"] = texts
            else:
                keywords.update(self._model._negatives.embeddings(self._pipe, texts))  # noqa: SLF001 -- one module
        return keywords

    def _stepped(self, done: int, tensors: dict[str, Any]) -> dict[str, Any]:
        if self._masked is not None:
            tensors["latents"] = self._masked.blend(tensors["latents"], self._sigma(), self._live)
        observers = [self._requests[index].observer for index in self._live]
        previews = self._previews(done, tensors["latents"])
        for place, observer in enumerate(observers):
            observer.progress(done, self.total, previews[place] if previews else None)
        keep = [place for place, observer in enumerate(observers) if not observer.cancelled()]
        # After the last step there is nothing to go on with: `images` drops those cancelled then.
        if len(keep) < len(observers) and (done < self.total or not keep):
            raise _BatchShrunk([self._live[place] for place in keep], tensors["latents"][keep], done)
        return tensors

    def _previews(self, done: int, latents: torch.Tensor) -> list[bytes] | None:
        if done >= self.total:
            return None
        return self._previewer.step(latents, self._sigma(), self._unpack)

    def _sigma(self) -> float:
        scheduler = self._pipe.scheduler
        # step_index already points to the next step, so this is the noise level of the latents.
        return float(scheduler.sigmas[scheduler.step_index])

    def _unpack(self, latents: torch.Tensor) -> torch.Tensor:
        unpacked: torch.Tensor = self._pipe._unpack_latents(  # noqa: SLF001 -- diffusers gives it no public name
            latents, self._plan.height, self._plan.width, self._pipe.vae_scale_factor
        )
        return unpacked
