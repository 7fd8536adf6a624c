"""Drawn pairs on disk: parts of families, each drawn by a process of its own.

    python -m models.edits.pairs --out PART.npz --seed N --families M

Free of torch, so that eight of these start in a second.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from models.edits.scenes import family
from models.edits.wording import instruction
from models.garments.draw import Picture

CHANGES: Final = 5
WORDINGS: Final = 2


@dataclass(frozen=True, slots=True)
class Pairs:
    """Drawn pictures and the pairs among them.

    Attributes:
        pictures: (n, size, size, 3) uint8.
        before: (m,) number of each pair's picture before.
        after: (m,) number of each pair's picture after.
        texts: (m, WORDINGS) instructions.
    """

    pictures: Picture
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    texts: NDArray[np.str_]

    def save(self, path: Path) -> None:
        """Write them whole."""
        fresh = path.with_suffix(".new.npz")
        np.savez(
            fresh,
            pictures=self.pictures,
            before=self.before,
            after=self.after,
            texts=self.texts,
        )
        fresh.replace(path)

    @classmethod
    def read(cls, paths: list[Path]) -> Pairs:
        """Read parts, one after the other."""
        parts = [np.load(path) for path in paths]
        starts = np.cumsum([0, *(len(part["pictures"]) for part in parts)])
        return cls(
            np.concatenate([part["pictures"] for part in parts]),
            np.concatenate([part["before"] + at for part, at in zip(parts, starts, strict=False)]),
            np.concatenate([part["after"] + at for part, at in zip(parts, starts, strict=False)]),
            np.concatenate([part["texts"] for part in parts]),
        )


def draw_part(seed: int, families: int, size: int) -> Pairs:
    """Draw some families from one seed."""
    rng = np.random.default_rng([17, seed])
    pictures: list[Picture] = []
    before: list[int] = []
    after: list[int] = []
    texts: list[list[str]] = []
    for k in range(families):
        own = seed * 1_000_000 + k
        scenes, pairs = family(own, CHANGES)
        at = len(pictures)
        pictures += [scene.draw(own, size).picture for scene in scenes]
        for i, j, a, b in pairs:
            before.append(at + i)
            after.append(at + j)
            texts.append([instruction(a, b, rng) for _ in range(WORDINGS)])
    return Pairs(np.stack(pictures), np.array(before), np.array(after), np.array(texts))


def draw_parts(folder: Path, families: int, size: int, *, processes: int, seed: int, part: int = 500) -> list[Path]:
    """Draw the training set in parts, some at a time; a part that is there already stays.

    Args:
        folder: Where the parts lie.
        families: How many, in all parts together.
        size: Side of a picture in pixels.
        processes: Parts drawn at once.
        seed: Of the set.
        part: Families in a part.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts = [min(part, families - i) for i in range(0, families, part)]
    paths = [folder / f"{size}-{seed}-{i}-{count}.npz" for i, count in enumerate(counts)]
    waiting = [(i, path) for i, path in enumerate(paths) if not path.exists()]
    running: list[subprocess.Popen[bytes]] = []
    while waiting or running:
        while waiting and len(running) < processes:
            i, path = waiting.pop(0)
            values = {"out": path, "seed": 1000 + seed * 10_000 + i, "families": counts[i], "size": size}
            given = [text for name, value in values.items() for text in (f"--{name}", str(value))]
            running.append(subprocess.Popen([sys.executable, "-m", "models.edits.pairs", *given]))
        first = running.pop(0)
        if first.wait() != 0:
            raise RuntimeError("a part of the drawings failed")
    return paths


def main() -> None:
    """Draw one part."""
    parser = argparse.ArgumentParser(description="Draw a part of the edits model's pairs.")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--families", type=int, required=True)
    parser.add_argument("--size", type=int, default=64)
    given = parser.parse_args()
    draw_part(given.seed, given.families, given.size).save(given.out)


if __name__ == "__main__":
    main()
