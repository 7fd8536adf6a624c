"""Identifiers as people type them."""

from __future__ import annotations

import re
from uuid import UUID

_HEX = re.compile(r"[0-9a-f]{0,32}")


def ids_beginning_with(text: str) -> tuple[UUID, UUID] | None:
    """Return the first and the last id that begins with these digits; None where no id does.

    Args:
        text: Hexadecimal digits in any case, with or without hyphens.
    """
    digits = text.strip().lower().replace("-", "")
    if _HEX.fullmatch(digits) is None:
        return None
    return UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f"))
