"""Captions: what the model is told that a picture shows.

`trigger_only` says the trigger word and nothing else; `prompt` says what the caller wrote; `auto` says what is seen in
each picture. `[trigger]` stands for the trigger word, which goes first where it is missing.
"""

from __future__ import annotations

import re
from typing import Final, Literal

from meshkit.errors import invalid

Strategy = Literal["trigger_only", "prompt", "auto"]
STRATEGIES: Final[tuple[Strategy, ...]] = ("trigger_only", "prompt", "auto")
PLACEHOLDER: Final = "[trigger]"
MAX_CHARS: Final = 2000


def with_trigger(text: str, trigger: str) -> str:
    """Return a caption with the trigger word: in place of every `[trigger]`, or first where the caption lacks it."""
    told = " ".join(text.replace(PLACEHOLDER, trigger).split())
    if re.search(rf"(?<!\w){re.escape(trigger)}(?!\w)", told, re.IGNORECASE):
        return told
    return f"{trigger}, {told}" if told else trigger


def caption_for(strategy: Strategy, trigger: str, prompt: str, seen: str) -> str:
    """Return the caption of a picture.

    Args:
        strategy: How captions are made.
        trigger: The trigger word.
        prompt: What the caller wrote, for `prompt`.
        seen: What is seen in the picture, for `auto`.
    """
    text = {"trigger_only": "", "prompt": prompt, "auto": seen}[strategy]
    return with_trigger(text, trigger)[:MAX_CHARS]


def require_prompt(strategy: str, prompt: str, *, path: str = "preprocessing_captioning_prompt") -> None:
    """Refuse the strategy `prompt` without a prompt.

    Raises:
        MeshError: `INVALID`.
    """
    if strategy == "prompt" and not prompt.strip():
        raise invalid(path, "Field required with the captioning strategy 'prompt'", "missing")
