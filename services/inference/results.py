"""What leaves the child: the pictures of all task types pass here once, before anybody is told of them.

Two settings of an installation act here. The content check refuses a picture that scores above its threshold: the task
fails with CONTENT_POLICY, and nothing is stored. Without notes, pictures do not say how they were made.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from atelier.tasks.v1.enums_pb2 import ERROR_CATEGORY_CONTENT_POLICY
from PIL import Image

from meshkit.images.notes import strip_notes
from meshkit.logging import get_logger
from meshkit.worker.handlers import Lender, Need, Output, TaskFailed
from meshkit.worker.job_context import JobContext

_log = get_logger(__name__)

CHECK_FAMILY = "content"
_CHECK = Need("check", CHECK_FAMILY)


class ResultReview:
    """Looks at results, and changes their files where settings say so.

    Args:
        lender: Keeps the model of the check.
        threshold: Scores above it are refused; 0 checks nothing.
        notes: Whether pictures say how they were made.
    """

    def __init__(self, lender: Lender | None, *, threshold: float, notes: bool) -> None:
        self._lender = lender
        self._threshold = threshold
        self._notes = notes

    def __call__(self, context: JobContext, output: Output) -> Output:
        """Return the result as it may leave.

        Raises:
            TaskFailed: It must not leave.
        """
        pictures = list(_pictures(context, output))
        if self._threshold > 0 and pictures:
            self._check(context, pictures)
        if not self._notes:
            for path in pictures:
                strip_notes(path)
        return output

    def _check(self, context: JobContext, pictures: list[Path]) -> None:
        assert self._lender is not None  # a check that is on brings its family along
        with self._lender.lend([_CHECK]) as lent:
            for path in pictures:
                with Image.open(path) as image:
                    score = lent[_CHECK.name].score(image)
                if score > self._threshold:
                    _log.warning("result_refused", job_id=context.job_id, score=round(score, 4))
                    raise TaskFailed(
                        "The result was refused by this installation's content check.",
                        ERROR_CATEGORY_CONTENT_POLICY,
                        retryable=False,
                    )


def _pictures(context: JobContext, output: Output) -> Iterator[Path]:
    for file in output.files:
        if file.content_type.startswith("image/"):
            yield context.folder / file.name
