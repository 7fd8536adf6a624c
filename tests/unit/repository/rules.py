"""The rules for Prometheus, and what queries name."""

from __future__ import annotations

import re
from typing import Any

import yaml  # type: ignore[import-untyped] # ships no types

from tests.unit.repository.sources import ROOT

RULES = ROOT / "ops" / "prometheus"
_NAME = re.compile(r"\b(?:atelier|flower)[_:][a-z0-9_:]+")
_SELECTOR = re.compile(r"\{[^}]*\}|by \([^)]*\)|on \([^)]*\)|\"[^\"]*\"")


def rules(file: str) -> list[dict[str, Any]]:
    """Every rule of a file."""
    document = yaml.safe_load((RULES / file).read_text(encoding="utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


def expressions(file: str) -> list[str]:
    """Every query of a file."""
    return [rule["expr"] for rule in rules(file)]


def recorded() -> set[str]:
    """Names of the figures that the recording rules make."""
    return {rule["record"] for rule in rules("recording.yml")}


def names_in(expression: str) -> set[str]:
    """Metrics that a query names."""
    return set(_NAME.findall(_SELECTOR.sub("", expression)))
