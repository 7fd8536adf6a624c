"""Put photos into the folders of three cameras: `python examples/capture/shoot.py FOLDER`."""

import sys
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image, ImageFilter

PHOTOS = Path(__file__).parents[2] / "tests" / "unit" / "modelkit" / "data" / "people"


def as_it_is(photo: Image.Image) -> Image.Image:
    """Change nothing."""
    return photo


def blurred(photo: Image.Image) -> Image.Image:
    """Move the camera while the shutter is open."""
    return photo.filter(ImageFilter.GaussianBlur(6))


def dark(photo: Image.Image) -> Image.Image:
    """Forget the flash: three stops less light."""
    return photo.point(lambda level: round(255 * ((level / 255) ** 2.2 / 8) ** (1 / 2.2)))


def bright(photo: Image.Image) -> Image.Image:
    """Leave the flash at full power: two and a half stops too much light."""
    return photo.point(lambda level: round(255 * min(1.0, (level / 255) ** 2.2 * 6) ** (1 / 2.2)))


SHOTS: tuple[tuple[str, str, Callable[[Image.Image], Image.Image]], ...] = (
    ("studio-a", "astronaut", as_it_is),
    ("gate", "coffee", as_it_is),
    ("studio-a", "obama", blurred),
    ("studio-b", "grace-hopper", as_it_is),
    ("studio-a", "biden", dark),
    ("studio-b", "obama3", as_it_is),
    ("studio-a", "grace-hopper", bright),
)


def shoot(root: Path, pause_seconds: float = 0.5) -> None:
    """Take the shots, one after the other."""
    for number, (camera, name, change) in enumerate(SHOTS):
        folder = root / camera
        folder.mkdir(exist_ok=True)
        with Image.open(PHOTOS / f"{name}.jpg") as photo:
            change(photo.convert("RGB")).save(folder / f"{number:03}-{name}.jpg", quality=92)
        time.sleep(pause_seconds)


if __name__ == "__main__":
    shoot(Path(sys.argv[1]))
