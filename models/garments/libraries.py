"""Untyped classes of diffusers and transformers, which mypy cannot follow through their lazy modules.

Everything past this module is typed; what comes out of these classes is typed again where it enters a signature.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import diffusers
import transformers
from diffusers.models import downsampling, resnet, upsampling

# Instances of these are annotated by the aliases below.
AutoencoderKL: Any = diffusers.AutoencoderKL
Downsample2D: Any = downsampling.Downsample2D
FlowMatchEulerDiscreteScheduler: Any = diffusers.FlowMatchEulerDiscreteScheduler
FluxPipeline: Any = diffusers.FluxPipeline
FluxTransformer2DModel: Any = diffusers.FluxTransformer2DModel
ResnetBlock2D: Any = resnet.ResnetBlock2D
Upsample2D: Any = upsampling.Upsample2D

CLIPTextConfig: Any = transformers.CLIPTextConfig
CLIPTextModel: Any = transformers.CLIPTextModel
CLIPTokenizer: Any = transformers.CLIPTokenizer
T5Config: Any = transformers.T5Config
T5EncoderModel: Any = transformers.T5EncoderModel
T5TokenizerFast: Any = transformers.T5TokenizerFast

Autoencoder: TypeAlias = Any
Encoder: TypeAlias = Any
Pipeline: TypeAlias = Any
Tokenizer: TypeAlias = Any
Transformer: TypeAlias = Any
