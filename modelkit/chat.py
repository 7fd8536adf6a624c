"""What a language model is asked and what it answers; free of torch, so that a worker's parent may import it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

# A result lies in a row: an answer is cut here, whatever its tokens hold.
MAX_ANSWER = 200_000
PENALTY_WINDOW = 512
"""Tokens that the frequency penalty looks back."""


class ChatObserver(Protocol):
    """Who waits for an answer."""

    def progress(self, step: int, total: int, *, text: str | None = None) -> None:
        """Learn that `step` of at most `total` tokens are written, and the text so far."""
        ...

    def cancelled(self) -> bool:
        """Tell whether to stop; read before each token."""
        ...


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """One question.

    Attributes:
        prompt: What the caller says.
        system: System prompt.
        max_tokens: Most tokens of the answer.
        temperature: 0 takes the likeliest token each time; higher values vary more.
        top_p: Share of the probability that tokens are drawn from, the likeliest first.
        seed: What the draws begin from.
        frequency_penalty: By how much a token's score falls each time that it has come up among the last 512, so that
            an answer does not go round in circles; the model's own where None.
    """

    prompt: str
    system: str
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    frequency_penalty: float | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model answered.

    Attributes:
        text: The answer.
        input_tokens: Tokens that the model read, those of the chat template among them.
        output_tokens: Tokens that it wrote.
        cut: Why it ends early: `max_tokens`, or the end of the model's `context`; None where it ends by itself.
    """

    text: str
    input_tokens: int
    output_tokens: int
    cut: Literal["max_tokens", "context"] | None


def too_long(tokens: int, context: int) -> str:
    """Say that a prompt leaves no room for an answer."""
    return (
        f"The prompt has {tokens} tokens with its system prompt, and the model holds {context} in all, its answer "
        "among them: a shorter prompt is needed."
    )
