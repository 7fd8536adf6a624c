"""How a training ends early."""

from __future__ import annotations

from modelkit.errors import ModelErrorKind
from modelkit.training.watching import Stop


class TrainingFailed(Exception):  # noqa: N818 -- an outcome, as TaskFailed is
    """A training that cannot go on; its message holds no path and no text of a library.

    Args:
        category: Who can do something about it.
        message: One sentence.
    """

    def __init__(self, category: ModelErrorKind, message: str) -> None:
        super().__init__(message)
        self.category = category
        self.message = message


class TrainingStopped(Exception):  # noqa: N818 -- asked for, and no error
    """A training that the watcher stopped. After a drain, its state has been kept.

    Args:
        stop: Why.
        step: Steps that are done.
    """

    def __init__(self, stop: Stop, step: int) -> None:
        super().__init__(f"{stop.value} after step {step}")
        self.stop = stop
        self.step = step
