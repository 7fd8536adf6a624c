"""The table for people and the JSON for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from bench.gpu.running import Outcome
from bench.gpu.setting import Figure

_HINTS = {"tiny": ("Scale tiny: this tries the code, and its figures mean nothing.",)}


@dataclass(frozen=True, slots=True)
class Machine:
    """What it ran on.

    Attributes:
        device: Name of the card, or of the processor.
        torch: Version of torch.
        diffusers: Version of diffusers.
        scale: `full` or `tiny`.
        date: Day and time, UTC.
    """

    device: str
    torch: str
    diffusers: str
    scale: str
    date: str


def table(machine: Machine, outcomes: Sequence[Outcome]) -> str:
    """Return the table in Markdown; a part that failed has a line that says why."""
    lines = [
        f"{machine.device}, torch {machine.torch}, diffusers {machine.diffusers}, {machine.date}",
        *_HINTS.get(machine.scale, ()),
        "",
        "| part | figure | value | unit | note |",
        "|---|---|---|---|---|",
    ]
    for outcome in outcomes:
        lines += [
            _row(outcome.part, figure.name, _number(figure), figure.unit, figure.note) for figure in outcome.figures
        ]
        state = f"FAILED: {outcome.error}" if outcome.error else "done"
        lines.append(_row(outcome.part, "in all", f"{outcome.seconds:.1f}", "s", state))
    return "\n".join(lines)


def as_json(machine: Machine, outcomes: Sequence[Outcome]) -> dict[str, object]:
    """Return the same for programs."""
    return {
        **asdict(machine),
        "parts": [
            {
                "name": outcome.part,
                "ok": not outcome.error,
                "error": outcome.error,
                "seconds": round(outcome.seconds, 3),
                "figures": [asdict(figure) for figure in outcome.figures],
            }
            for outcome in outcomes
        ],
    }


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _number(figure: Figure) -> str:
    return f"{figure.value:.4g}"
