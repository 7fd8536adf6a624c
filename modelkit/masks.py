"""Masks: parts of a picture that a denoising leaves as they are.

After each step the latents outside the mask are replaced by those of the picture at the step's noise level, so that
what is painted inside meets what stays (RePaint, Lugmayr et al. 2022, without its resampling; FluxInpaintPipeline does
the same). The picture's own pixels are put back at the end, since an autoencoder does not return them exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image

from modelkit.pictures import framed
from modelkit.requests import ImageRequest

# Apart from the seed of the picture's own noise, which is drawn from another generator.
_NOISE = 0x6D61736B


class MaskedLatents:
    """What stays of a batch of pictures, as packed latents.

    Args:
        clean: (batch, tokens, channels) latents of the pictures.
        noise: The same shape.
        mask: The same shape: 1 where the picture may change.
    """

    def __init__(self, clean: torch.Tensor, noise: torch.Tensor, mask: torch.Tensor) -> None:
        self._clean, self._noise, self._mask = clean, noise, mask

    @classmethod
    def of(cls, pipe: Any, requests: Sequence[ImageRequest], width: int, height: int) -> MaskedLatents | None:
        """Encode the pictures of masked requests; None where they have no masks."""
        pairs = [(request.reference, request.mask) for request in requests if request.reference and request.mask]
        if not pairs:
            return None
        with torch.inference_mode():
            clean = encoded(
                pipe, [framed(picture.convert("RGB"), width, height, "stretch") for picture, _ in pairs], width, height
            )
            levels = torch.stack([_levels(mask, width, height) for _, mask in pairs])
            pooled = torch.nn.functional.adaptive_max_pool2d(levels, clean.shape[-2:]).to(clean)
            noise = torch.cat(
                [
                    torch.randn((1, *clean.shape[1:]), generator=torch.Generator().manual_seed(request.seed ^ _NOISE))
                    for request in requests
                ]
            ).to(clean)

            def pack(planes: torch.Tensor) -> torch.Tensor:
                n, c, h, w = planes.shape
                return cast("torch.Tensor", pipe._pack_latents(planes, n, c, h, w))  # noqa: SLF001 -- no public name

            return cls(pack(clean), pack(noise), pack(pooled.expand_as(clean)))

    def blend(self, latents: torch.Tensor, sigma: float, rows: Sequence[int]) -> torch.Tensor:
        """Return latents whose unmasked part is the picture's, at a noise level.

        Args:
            latents: Packed latents of some of the pictures.
            sigma: Share of noise in them.
            rows: Which pictures they are.
        """
        chosen = list(rows)
        kept = (1 - sigma) * self._clean[chosen] + sigma * self._noise[chosen]
        mask = self._mask[chosen]
        return (mask * latents + (1 - mask) * kept).to(latents.dtype)


def encoded(pipe: Any, pictures: Sequence[Image.Image], width: int, height: int) -> torch.Tensor:
    """Encode RGB pictures of `width` x `height`: (n, channels, height, width) latents as the transformer sees them."""
    vae = pipe.vae
    planes = pipe.image_processor.preprocess(list(pictures), height, width).to(vae.device, vae.dtype)
    latents = vae.encode(planes).latent_dist.mode()
    return cast("torch.Tensor", (latents - vae.config.shift_factor) * vae.config.scaling_factor)


def unchanged_outside(image: Image.Image, request: ImageRequest) -> Image.Image:
    """Put the picture's own pixels back where the mask of a request keeps them."""
    if request.mask is None or request.reference is None:
        return image
    return Image.composite(
        image, framed(request.reference.convert("RGB"), *image.size, "stretch"), request.mask.resize(image.size)
    )


def _levels(mask: Image.Image, width: int, height: int) -> torch.Tensor:
    """Return a mask as (1, height, width) levels of 0 to 1."""
    small = mask.convert("L").resize((width, height), Image.Resampling.BOX)
    return torch.frombuffer(bytearray(small.tobytes()), dtype=torch.uint8).view(1, height, width).float() / 255
