"""Previews: small pictures of a denoising in progress."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from typing import Any

import torch
from PIL import Image

MAX_BYTES = 16 * 1024
_MAX_SIDE = 256
# Send at most a few previews a second, and spend at most this share of the denoising time on them.
_INTERVAL_SECONDS = 0.4
_TIME_SHARE = 0.02
# A decoder this small, on this few latents, costs less than a step. Larger ones are replaced by a linear projection.
_SMALL_DECODER = 20_000_000
_SMALL_LATENTS = 32 * 32


class Previewer:
    """Turns the latents of one denoising into previews, within a limit of time.

    Args:
        projection: The model's picture of its latents.
        clock: Seconds, monotonic.
    """

    def __init__(self, projection: Projection, clock: Callable[[], float] = time.monotonic) -> None:
        self._projection = projection
        self._clock = clock
        self._started = self._last = clock()
        self._spent = self._cost = 0.0
        self._before: tuple[torch.Tensor, float] | None = None

    def step(
        self, latents: torch.Tensor, sigma: float, unpack: Callable[[torch.Tensor], torch.Tensor]
    ) -> list[bytes] | None:
        """Take a step's latents, and draw the pictures that they lead to if a preview is due.

        The pipeline does not show the predicted direction v, so it is computed from the latents of two steps:
        x' - x = (sigma' - sigma) v, and the clean estimate is x' - sigma' v.

        Args:
            latents: The batch's latents after the step, as the pipeline packs them.
            sigma: Share of noise in them.
            unpack: Makes (batch, channels, height, width) of them.

        Returns:
            A JPEG for each picture; None if none is due, and after the first step, whose direction is unknown.
        """
        before, self._before = self._before, (latents, sigma)
        began = self._clock()
        dear = self._spent + self._cost > _TIME_SHARE * (began - self._started)
        if dear or began - self._last < _INTERVAL_SECONDS:
            return None
        if before is None or before[1] == sigma or before[0].shape != latents.shape:
            return None
        direction = (latents - before[0]) / (sigma - before[1])
        pictures = [_jpeg(image) for image in self._projection.images(unpack(latents - sigma * direction))]
        self._last = self._clock()
        self._cost = self._last - began
        self._spent += self._cost
        return pictures


class Projection:
    """Draws latents cheaply: by the decoder if it is small, else by a linear projection that is fitted once.

    Args:
        vae: The model's autoencoder.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae
        self._small = sum(parameter.numel() for parameter in vae.parameters()) <= _SMALL_DECODER
        self._matrix: torch.Tensor | None = None

    @torch.no_grad()
    def images(self, latents: torch.Tensor) -> list[Image.Image]:
        """Draw latents of (batch, channels, height, width), scaled as the transformer sees them."""
        if self._small and latents.shape[-1] * latents.shape[-2] <= _SMALL_LATENTS:
            config = self._vae.config
            planes = self._vae.decode(
                latents.to(self._vae.dtype) / config.scaling_factor + config.shift_factor, return_dict=False
            )[0]
        else:
            if self._matrix is None:
                self._matrix = self._fit()
            flat = latents.movedim(1, -1).float()
            planes = (torch.cat([flat, torch.ones_like(flat[..., :1])], -1) @ self._matrix).movedim(-1, 1)
        levels = ((planes.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        return [Image.fromarray(image) for image in levels.movedim(1, -1).cpu().numpy()]

    def _fit(self) -> torch.Tensor:
        """Fit latents to colours by least squares, over random patches that the encoder encodes."""
        vae, config = self._vae, self._vae.config
        generator = torch.Generator().manual_seed(0)
        coarse = torch.rand(16, 3, 4, 4, generator=generator) * 2 - 1
        shown = torch.nn.functional.interpolate(coarse, size=64, mode="bilinear", align_corners=False)
        latents = vae.encode(shown.to(vae.device, vae.dtype)).latent_dist.mode()
        latents = ((latents - config.shift_factor) * config.scaling_factor).float()
        colours = torch.nn.functional.adaptive_avg_pool2d(shown, latents.shape[-2:]).to(latents.device)
        x = latents.movedim(1, -1).flatten(0, 2)
        x = torch.cat([x, torch.ones_like(x[:, :1])], -1)
        # The ridge keeps the projection stable for channels that these patches do not vary.
        gram = x.T @ x + 1e-3 * torch.eye(x.shape[1], device=x.device)
        solved: torch.Tensor = torch.linalg.solve(gram, x.T @ colours.movedim(1, -1).flatten(0, 2))
        return solved


def _jpeg(image: Image.Image) -> bytes:
    if max(image.size) > _MAX_SIDE:
        image.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.BILINEAR)
    for quality in (80, 60, 40, 20):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        if buffer.tell() <= MAX_BYTES:
            break
    return buffer.getvalue()
