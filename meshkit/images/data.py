"""Files inside of JSON: base64, plain or as a data URL."""

from __future__ import annotations

import binascii
from urllib.parse import unquote

from meshkit.errors import invalid, too_large
from meshkit.images.limits import DEFAULT_LIMITS, MEMBER

_SCHEME = "data:"
_MAX_HEAD_CHARS = 1024  # media type and parameters, such as a file's name


def decode_data(text: str, *, path: str = MEMBER, max_bytes: int = DEFAULT_LIMITS.max_bytes) -> bytes:
    """Decode base64, plain or as a data URL, strictly.

    A data URL (RFC 2397) may have parameters, in any spelling, and percent signs in its content.

    Args:
        text: The text.
        path: Path of the request's member, for the error.
        max_bytes: Bytes at most.

    Raises:
        MeshError: `INVALID` for broken base64 or an empty text, `TOO_LARGE` for too many bytes.
    """
    body = text
    if text[: len(_SCHEME)].lower() == _SCHEME:
        comma = _end_of_head(text)
        if comma < 0 or not text[:comma].rstrip().lower().endswith(";base64"):
            raise invalid(path, "must be a data URL with base64", "data_url")
        body = text[comma + 1 :]
        # A character takes three at most when it is escaped.
        if "%" in body and len(body) // 12 * 3 <= max_bytes + 3:
            body = unquote(body)
    # Encoders insert line breaks; any other stray character is an error.
    body = body.replace("\r", "").replace("\n", "")
    if len(body) // 4 * 3 > max_bytes + 3:
        raise too_large(f"{path} has more than {max_bytes} bytes")
    if len(body) % 4:  # the decoder accepts padding that is too long
        raise invalid(path, "is not valid base64", "base64")
    try:
        data = binascii.a2b_base64(body, strict_mode=True)
    except ValueError:  # covers binascii.Error, and what non-ASCII text raises
        raise invalid(path, "is not valid base64", "base64") from None
    if not data:
        raise invalid(path, "must not be empty", "base64")
    if len(data) > max_bytes:
        raise too_large(f"{path} has more than {max_bytes} bytes")
    return data


def _end_of_head(text: str) -> int:
    """Return where the comma stands that ends a data URL's head; one within quotes does not. -1 where there is none."""
    quoted = False
    for index, char in enumerate(text[:_MAX_HEAD_CHARS]):
        if char == '"':
            quoted = not quoted
        elif char == "," and not quoted:
            return index
    return -1
