"""How an answer tells that its `total` is an estimate: by trailing metadata, and over HTTP by a header of that name."""

from __future__ import annotations

ESTIMATED_KEY = "total-is-estimate"
ESTIMATED = ((ESTIMATED_KEY, "true"),)
