"""Untyped classes of diffusers, which mypy cannot follow through its lazy modules."""

from __future__ import annotations

from typing import Any

import diffusers

FluxKontextPipeline: Any = diffusers.FluxKontextPipeline
