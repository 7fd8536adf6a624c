"""Pictures that a network draws while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import torch
from PIL import Image

from modelkit.card import ModelCard
from modelkit.device import Device
from modelkit.training.encoding import Text, load_autoencoder, loaded
from modelkit.training.network import TrainedNetwork
from modelkit.training.state import random_state, restore_random

FluxPipeline: Any = diffusers.FluxPipeline
FlowMatchEulerDiscreteScheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler
FIRST_SEED = 42
"""Seed of the first prompt's noise; the next prompt has the next one."""


class SampleDrawing:
    """A pipeline around the network, ready to draw.

    Args:
        pipe: The pipeline.
        network: The network in it.
        card: The model's card.
        side: Side of the pictures in pixels.
        steps: Denoising steps.
        pause: Called between two steps; raises to stop.
    """

    def __init__(
        self, pipe: Any, network: TrainedNetwork, card: ModelCard, *, side: int, steps: int, pause: Callable[[], None]
    ) -> None:
        self._pipe = pipe
        self._network = network
        self._card = card
        self._side = side
        self._steps = steps
        self._pause = pause

    def latents(self, text: Text, negative: Text | None, seed: int) -> torch.Tensor:
        """Draw latents (1, channels, h, w), shifted and scaled as the network knows them."""
        guidance, name = self._card.guidance, self._pipe.transformer.device
        keywords: dict[str, Any] = {
            "prompt_embeds": text.tokens.to(name),
            "pooled_prompt_embeds": text.pooled.to(name),
            "width": self._side,
            "height": self._side,
            "num_inference_steps": self._steps,
            "guidance_scale": guidance.scale_default,
            # Drawn on the processor, so that it is the same on every device.
            "generator": torch.Generator().manual_seed(seed),
            "max_sequence_length": self._card.max_sequence_length,
            "callback_on_step_end": self._stepped,
            "output_type": "latent",
        }
        if negative is not None:
            keywords["true_cfg_scale"] = guidance.true_cfg_scale
            keywords["negative_prompt_embeds"] = negative.tokens.to(name)
            keywords["negative_pooled_prompt_embeds"] = negative.pooled.to(name)
        with self._network.numbers():
            tokens = self._pipe(**keywords).images
        unpacked: torch.Tensor = self._pipe._unpack_latents(  # noqa: SLF001 -- diffusers gives it no public name
            tokens, self._side, self._side, self._pipe.vae_scale_factor
        )
        return unpacked.float().cpu()

    def picture(self, text: Text, negative: Text | None, seed: int) -> Image.Image:
        """Draw a picture."""
        vae = self._pipe.vae
        latents = self.latents(text, negative, seed).to(vae.device, vae.dtype)
        with torch.no_grad():
            scaled = latents / vae.config.scaling_factor + (vae.config.shift_factor or 0.0)
            decoded = vae.decode(scaled, return_dict=False)[0]
        image: Image.Image = self._pipe.image_processor.postprocess(decoded.float(), output_type="pil")[0]
        return image

    def _stepped(self, _pipe: Any, _step: int, _time: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        self._pause()
        return tensors


class Sampler:
    """Draws with a network that learns, as the mesh will draw with its adapter.

    Args:
        folder: The model's folder.
        card: Its card.
        network: The network.
        device: Where it is.
        side: Side of the pictures in pixels; the model's native one where None.
        steps: Denoising steps, brought into the card's range.
        pause: Called between two steps; raises to stop.
    """

    def __init__(
        self,
        folder: Path,
        card: ModelCard,
        network: TrainedNetwork,
        device: Device,
        *,
        side: int | None,
        steps: int,
        pause: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._card = card
        self._network = network
        self._device = device
        wanted = min(side or card.native_size, card.max_size)
        self.side = max(card.size_multiple, wanted // card.size_multiple * card.size_multiple)
        self._steps = min(max(steps, card.steps.min), card.steps.max)
        self._pause = pause
        self._scheduler = loaded(
            lambda: FlowMatchEulerDiscreteScheduler.from_pretrained(
                str(folder), subfolder="scheduler", local_files_only=True
            )
        )

    @property
    def scheduler(self) -> Mapping[str, Any]:
        """Settings of the model's own scheduler."""
        return dict(self._scheduler.config)

    @property
    def negative(self) -> str | None:
        """The negative prompt that pictures are drawn with; None where there is none."""
        return self._card.guidance.negative_prompt if self._card.guidance.true_cfg_scale > 1 else None

    @contextmanager
    def drawing(self) -> Iterator[SampleDrawing]:
        """Load the autoencoder and lend what draws; the autoencoder is freed again.

        The training goes on with the random numbers that it would have had without.
        """
        kept = random_state()
        transformer = self._network.transformer
        pipe = FluxPipeline(
            scheduler=FlowMatchEulerDiscreteScheduler.from_config(self._scheduler.config),
            vae=load_autoencoder(self._folder, self._device, self._device.dtype),
            text_encoder=None,
            tokenizer=None,
            text_encoder_2=None,
            tokenizer_2=None,
            transformer=transformer,
        )
        pipe.set_progress_bar_config(disable=True)
        transformer.eval()
        try:
            yield SampleDrawing(pipe, self._network, self._card, side=self.side, steps=self._steps, pause=self._pause)
        finally:
            transformer.train()
            restore_random(kept)
