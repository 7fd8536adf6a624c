"""`make demo-all`: a mesh, a task of every type that it serves, and a contact sheet of what they made.

Usage: python -m atelier_cli.demo_all [FOLDER] [PHOTO]
"""

import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from atelier_cli.client import Gateway
from atelier_cli.demo import mesh_for_a_while
from atelier_cli.folder import DataFolder
from atelier_cli.sheet import Panel, contact_sheet
from atelier_cli.terminal import err

_DATA: Final = Path(".data/demo")
_STUDIO: Final = "examples/workflows/studio.png"
_PHOTO: Final = "tests/unit/modelkit/data/astronaut.jpg"
# Places of files in the arguments below.
_FOLDER, _PICTURE = "{folder}", "{photo}"


@dataclass(frozen=True, slots=True)
class Scene:
    """One task of the demonstration.

    Attributes:
        task_type: Its type; it is left out where that is not served.
        name: File that it makes, below the folder of the demonstration.
        title: Its title on the sheet.
        arguments: Of `atelier`, but for the file.
        shown: Whether it has a place on the sheet, or is only an input of another.
    """

    task_type: str
    name: str
    title: str
    arguments: Sequence[str]
    shown: bool = True


_DRESS, _SMALL, _SOFT = f"{_FOLDER}/dress.png", f"{_FOLDER}/small.png", f"{_FOLDER}/soft.png"
_SQUARE = ("--target-width", "512", "--target-height", "512")
SCENES: Final = (
    Scene(
        *("GENERATION", "dress.png", "generate: a red dress with a belt"),
        ("generate", "a red dress with a belt", "--width", "512", "--height", "512", "--seed", "4"),
    ),
    Scene(
        *("EDITING", "edited.png", "edit: make it blue"),
        ("edit", "make it blue", _DRESS, "--width", "512", "--height", "512", "--seed", "4"),
    ),
    Scene("BACKGROUND_REMOVE", "cut.png", "cutout: the dress", ("cutout", _DRESS)),
    Scene("IMAGE_ADJUSTER", "framed.png", "adjust: 3 to 2", ("adjust", _DRESS, "--aspect-ratio", "1.5")),
    Scene("BACKGROUND_REMOVE", "person.png", "cutout: a photo", ("cutout", _PICTURE)),
    Scene(
        *("BACKGROUND_FIX", "studio.png", "fix-background: a studio"),
        ("fix-background", _PICTURE, "--palette-image", _STUDIO, "--strategy", "replace"),
    ),
    Scene(
        *("IMAGE_ADJUSTER", "small.png", "adjust: 128 pixels"),
        ("adjust", _PICTURE, "--target-width", "128", "--target-height", "128"),
    ),
    Scene(
        *("REFINE", "refined.png", "refine: that, four times larger"),
        (
            *("refine", _SMALL, "--upscale-factor", "4", "--upscale-denoise", "0", "--no-face-detail-enabled"),
            *("--upscale-seed", "4"),
        ),
    ),
    Scene("FACE_ENHANCER", "face.png", "face: restored in the small photo", ("face", _SMALL)),
    Scene(
        *("IMAGE_ADJUSTER", "soft-small.png", ""),
        ("adjust", _DRESS, "--target-width", "160", "--target-height", "160"),
        shown=False,
    ),
    Scene("IMAGE_ADJUSTER", "soft.png", "adjust: a soft dress", ("adjust", f"{_FOLDER}/soft-small.png", *_SQUARE)),
    Scene(
        *("DETAIL_ENHANCER", "detail.png", "detail: restored after the first"),
        ("detail", _SOFT, "--reference-image", _DRESS, "--detail-label", "dress"),
    ),
    Scene(
        *("VIDEO_GENERATION", "clip.mp4", "video: the dress sways"),
        ("video", "the dress sways", _DRESS, "--duration-seconds", "2", "--config", "seed=4"),
    ),
    Scene("PHOTO_DETECTION", "examined.json", "examine: what a photo shows", ("examine", _PICTURE)),
    Scene(
        *("LLM_INTERACTION", "caption.txt", "ask: a caption"),
        ("ask", "Write one short sentence that sells a red dress with a belt."),
    ),
)


def main() -> int:
    """Make everything; the exit code is 1 where something was not made."""
    given = sys.argv[1:]
    target = Path(given[0] if given else "demo")
    photo = given[1] if len(given) > 1 else _PHOTO
    target.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    panels: list[Panel] = []
    with mesh_for_a_while(_DATA):
        with Gateway.of(DataFolder(_DATA)) as gateway:
            served = set(gateway.call("GET", "/api/v1/catalog")["task_types"])
        for scene in SCENES:
            if scene.task_type in served:
                file = _made(scene, target, photo)
                if scene.shown:
                    panels.append(Panel(scene.title, file))
    sheet = target / "sheet.png"
    contact_sheet(panels).save(sheet)
    missing = sorted({scene.task_type for scene in SCENES} - served)
    if missing:
        err.print(f"Not served here: {', '.join(missing)}.")
    err.print(f"{len(panels)} results after {time.monotonic() - began:.0f} s, side by side in [bold]{sheet}[/bold].")
    return 1 if any(panel.file is None for panel in panels) else 0


def _made(scene: Scene, target: Path, photo: str) -> Path | None:
    """Run a scene; return its file, None where it failed."""
    file = target / scene.name
    words = [each.replace(_FOLDER, str(target)).replace(_PICTURE, photo) for each in scene.arguments]
    done = subprocess.run(
        [sys.executable, "-m", "atelier_cli", *words, "--data", str(_DATA), "-o", str(file)], check=False
    )
    return None if done.returncode else file


if __name__ == "__main__":
    sys.exit(main())
