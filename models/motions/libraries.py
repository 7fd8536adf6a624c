"""Untyped classes of diffusers that this recipe adds to those of the garments model."""

from __future__ import annotations

from typing import Any, TypeAlias

from diffusers.models.transformers.transformer_ltx import LTXVideoTransformer3DModel as _Transformer
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler as _Scheduler

# Instances of these are annotated by the aliases below.
FlowMatchEulerDiscreteScheduler: Any = _Scheduler
LTXVideoTransformer3DModel: Any = _Transformer

Transformer: TypeAlias = Any
