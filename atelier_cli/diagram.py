"""Lay out the steps of a workflow for a picture: levels from left to right, and lines between them. Pure.

A step is placed one level right of the last step that it depends on. A line that passes levels gets a place in each, so
that it runs between steps and not through them; places are ordered so that few lines cross.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

from atelier_cli.errors import CliError, ExitCode

BOX_WIDTH: Final = 176
BOX_HEIGHT: Final = 52
MARGIN: Final = 24
TITLE_HEIGHT: Final = 32
_GAP_X: Final = 64
_GAP_Y: Final = 20
_PASSAGE_HEIGHT: Final = 10
_SWEEPS: Final = 8

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class DiagramStep:
    """A step as it is drawn.

    Attributes:
        name: Its name.
        task_type: What its task does.
        needs: Names of those it depends on.
        state: Its state; empty for a step of a file.
    """

    name: str
    task_type: str
    needs: tuple[str, ...] = ()
    state: str = ""


@dataclass(frozen=True, slots=True)
class StepBox:
    """A step and the top left corner of its box."""

    step: DiagramStep
    x: float
    y: float


@dataclass(frozen=True, slots=True)
class Diagram:
    """A whole picture.

    Attributes:
        title: Text above the picture.
        width: Of the picture.
        height: Of the picture.
        boxes: The steps.
        lines: Each the points that a dependency's line goes through, from left to right.
    """

    title: str
    width: float
    height: float
    boxes: tuple[StepBox, ...]
    lines: tuple[tuple[Point, ...], ...]


@dataclass(slots=True)
class _Cell:
    """One step in its level, or one level that a line passes."""

    step: DiagramStep | None
    level: int
    before: "list[_Cell]"
    after: "list[_Cell]"
    order: float
    y: float = 0.0

    @property
    def height(self) -> int:
        return _PASSAGE_HEIGHT if self.step is None else BOX_HEIGHT


def steps_of(workflow: Mapping[str, Any]) -> list[DiagramStep]:
    """Return the steps of a workflow of the API, or of a definition.

    Raises:
        CliError: It is no definition, or its graph is broken.
    """
    given = workflow.get("steps")
    steps = [_step(one) for one in given] if isinstance(given, list) else []
    if not steps:
        raise CliError("The workflow has no steps.", ExitCode.USAGE)
    names = Counter(step.name for step in steps)
    for step in steps:
        if names[step.name] > 1:
            raise CliError(f"There are several steps {step.name}.", ExitCode.USAGE)
        for needed in step.needs:
            if needed not in names:
                raise CliError(f"Step {step.name} depends on {needed}, which does not exist.", ExitCode.USAGE)
    return steps


def levels_of(steps: Sequence[DiagramStep]) -> dict[str, int]:
    """Return the level of each step: 0 for those that depend on none, else one more than the highest it depends on.

    Raises:
        CliError: Steps depend on each other in a cycle.
    """
    levels: dict[str, int] = {}
    waiting = list(steps)
    while waiting:
        ready = [step for step in waiting if all(needed in levels for needed in step.needs)]
        if not ready:
            names = ", ".join(step.name for step in waiting)
            raise CliError(f"Steps depend on each other in a cycle; none of these can begin: {names}.", ExitCode.USAGE)
        levels |= {step.name: max((levels[needed] + 1 for needed in step.needs), default=0) for step in ready}
        waiting = [step for step in waiting if step.name not in levels]
    return levels


def lay_out(title: str, steps: Sequence[DiagramStep]) -> Diagram:
    """Give every step its place.

    Args:
        title: Text above the picture.
        steps: Those of `steps_of`.

    Raises:
        CliError: Steps depend on each other in a cycle.
    """
    columns, routes = _places(steps, levels_of(steps))
    for sweep in range(_SWEEPS):
        forward = sweep % 2 == 0
        for column in columns if forward else reversed(columns):
            _order(column, forward=forward)
    heights = [sum(one.height for one in column) + _GAP_Y * (len(column) - 1) for column in columns]
    tallest = max(heights)
    for column, height in zip(columns, heights, strict=True):
        y = TITLE_HEIGHT + MARGIN + (tallest - height) / 2
        for one in column:
            one.y = y
            y += one.height + _GAP_Y
    boxes = tuple(StepBox(one.step, _x(one), one.y) for column in columns for one in column if one.step is not None)
    return Diagram(
        title,
        2 * MARGIN + len(columns) * BOX_WIDTH + (len(columns) - 1) * _GAP_X,
        TITLE_HEIGHT + 2 * MARGIN + tallest,
        boxes,
        tuple(_points(route) for route in routes),
    )


def _step(given: Any) -> DiagramStep:
    name = (given.get("step_id") or given.get("id")) if isinstance(given, dict) else None
    if not isinstance(name, str):
        raise CliError("A step of the workflow has no id.", ExitCode.USAGE)
    # A step of the API has an `id` too, that of its row; a definition has no `step_id`.
    needs = given.get("dependencies" if "step_id" in given else "depends_on") or []
    if not isinstance(needs, list) or not all(isinstance(needed, str) for needed in needs):
        raise CliError(f"depends_on of step {name} is no list of names.", ExitCode.USAGE)
    state = str(given.get("status") or "") if "step_id" in given else ""
    return DiagramStep(name, str(given.get("task_type") or ""), tuple(dict.fromkeys(needs)), state)


def _places(steps: Sequence[DiagramStep], levels: Mapping[str, int]) -> tuple[list[list[_Cell]], list[list[_Cell]]]:
    """Columns of places, and for each dependency the places that its line goes through."""
    columns: list[list[_Cell]] = [[] for _ in range(max(levels.values()) + 1)]

    def place(step: DiagramStep | None, level: int) -> _Cell:
        made = _Cell(step, level, [], [], order=len(columns[level]))
        columns[level].append(made)
        return made

    placed = {step.name: place(step, levels[step.name]) for step in steps}
    routes = []
    for step in steps:
        for needed in step.needs:
            between = [place(None, level) for level in range(levels[needed] + 1, levels[step.name])]
            route = [placed[needed], *between, placed[step.name]]
            for left, right in pairwise(route):
                left.after.append(right)
                right.before.append(left)
            routes.append(route)
    return columns, routes


def _order(column: list[_Cell], *, forward: bool) -> None:
    """Sort a column by the mean place of each step's neighbours; a step without neighbours keeps its place."""

    def mean(one: _Cell) -> float:
        neighbours = one.before if forward else one.after
        return sum(each.order for each in neighbours) / len(neighbours) if neighbours else one.order

    column.sort(key=mean)
    for index, one in enumerate(column):
        # Relative to the column's middle, because columns are drawn centred.
        one.order = index - (len(column) - 1) / 2


def _x(one: _Cell) -> float:
    return MARGIN + one.level * (BOX_WIDTH + _GAP_X)


def _points(route: Sequence[_Cell]) -> tuple[Point, ...]:
    """Return a line's points: out of the first box, straight through each passage, into the last box."""
    first, last = route[0], route[-1]
    points: list[Point] = [(_x(first) + BOX_WIDTH, first.y + first.height / 2)]
    for one in route[1:-1]:
        middle = one.y + one.height / 2
        points += [(_x(one), middle), (_x(one) + BOX_WIDTH, middle)]
    return (*points, (_x(last), last.y + last.height / 2))
