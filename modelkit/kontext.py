"""The family of FLUX Kontext models: pictures changed by instructions, drawing on one picture or several.

The pictures' clean latents are appended to the noisy ones. Several lie side by side, as if they were one wide picture:
the pipeline of diffusers has positions for one picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers import FluxKontextPipeline

from modelkit import sizes
from modelkit.errors import ModelError
from modelkit.flux import FluxFamily, FluxModel
from modelkit.masks import encoded
from modelkit.pictures import framed
from modelkit.requests import BatchSettings, ImageRequest


class KontextFamily(FluxFamily):
    """Loads FLUX Kontext models from diffusers folders; parts of equal content are in memory once."""

    architecture: ClassVar[str] = "flux-kontext"

    def _model(self) -> type[FluxModel]:
        return KontextModel


class KontextModel(FluxModel):
    """One FLUX Kontext pipeline."""

    pipeline: ClassVar[Any] = FluxKontextPipeline

    def check(self, requests: Sequence[ImageRequest]) -> None:
        """Refuse requests without a picture to edit, or with more references than the model draws on.

        Raises:
            ModelError: There is such a request.
        """
        if len(requests[0].others) > self.card.references:
            most = self.card.references
            takes = f"at most {most}" if most else "no"
            raise ModelError(f"The model {self.card.name} takes {takes} reference images.")
        if any(request.reference is None for request in requests):
            raise ModelError(f"The model {self.card.name} edits pictures, and cannot draw one from a prompt alone.")

    def conditions(self, requests: Sequence[ImageRequest], plan: sizes.SizePlan) -> dict[str, Any]:
        """Return the latents of the pictures, and keep the pipeline from choosing a size of its own."""
        return {"image": self._shown(requests, plan), "max_area": plan.width * plan.height, "_auto_resize": False}

    def start(
        self, settings: BatchSettings, requests: Sequence[ImageRequest], plan: sizes.SizePlan, keywords: dict[str, Any]
    ) -> Any:
        """Run the pipeline from noise alone, or from the picture under the noise of a later step."""
        steps = keywords["num_inference_steps"]
        first = int(max(steps - min(steps * (1 - settings.strength), steps), 0))
        if not first:
            return self.pipe(**keywords)
        sigmas = np.linspace(1.0, 1 / steps, steps)[first:]
        clean = self._shown(requests, plan)[..., : plan.width // self.pipe.vae_scale_factor]
        noise = torch.cat(
            [torch.randn((1, *clean.shape[1:]), generator=generator) for generator in keywords["generator"]]
        ).to(clean)
        mixed = (1 - sigmas[0]) * clean + sigmas[0] * noise
        latents = self.pipe._pack_latents(mixed, *mixed.shape)  # noqa: SLF001 -- diffusers gives it no public name
        return self.pipe(**keywords, latents=latents, sigmas=sigmas)

    def _shown(self, requests: Sequence[ImageRequest], plan: sizes.SizePlan) -> torch.Tensor:
        width, height = plan.width, plan.height
        columns = [
            [
                framed(request.reference.convert("RGB"), width, height, "stretch")
                for request in requests
                if request.reference is not None
            ]
        ]
        columns += [
            [framed(request.others[index].convert("RGB"), width, height, "contain") for request in requests]
            for index in range(len(requests[0].others))
        ]
        return torch.cat([encoded(self.pipe, column, width, height) for column in columns], dim=3)
