"""Redraw a picture tile by tile, each tile again until it passes a check, with the colours that it had.

| version | colours | size that a tile is drawn at |
|---|---|---|
| 1 | coarse colours and shading kept, in CIELAB | the least of 1024, 2048 and 4096 that covers the tile |
| 2 | the histogram of each channel kept | 4096 |

The tiles' grid follows the picture's aspect. Neighbours overlap, and blend over the overlap. A tile that passes in no
attempt stays what the plain enlargement shows.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from PIL import Image

from modelkit import sizes
from modelkit.consistency import ConsistencyCheck, Scores
from modelkit.patches import Blend, Floats, PixelBox, Pixels, feather, filled, match_colour, match_histogram
from modelkit.redraw import Done, Draw, Redrawn, Restorer, best_attempt, drawn_by, fitting, strength_of

Keep = Callable[[str, Image.Image], None]

DRAWN_SIDES = (1024, 2048, 4096)
# What is compared is no larger than this, which keeps the networks of the checks within a gigabyte.
_COMPARED_SIDE = 1024
# The photo network takes half a millisecond for each pixel that it is given, on one core: nine minutes for these.
_NETWORK_PIXELS = 1 << 20
_NETWORK_SCALE = 4
_NETWORK_SHARE = 0.5


@dataclass(frozen=True, slots=True)
class PictureTile:
    """A tile that is to be redrawn.

    Attributes:
        number: Which tile it is, from 0.
        total: Tiles of the picture.
        plain: The tile as the plain enlargement shows it, RGB, at its size in the result.
        side: Longer side in pixels that a drawing is to have.
        original: The picture before it was enlarged, RGB.
        area: The tile's part of it: left, top, right, bottom in pixels.
    """

    number: int
    total: int
    plain: Pixels
    side: int
    original: Image.Image
    area: tuple[float, float, float, float]

    @property
    def original_side(self) -> int:
        """Longer side of the tile in the original, in pixels."""
        left, top, right, bottom = self.area
        return max(1, math.ceil(max(right - left, bottom - top)))

    def copy(self, longest: int) -> Pixels:
        """Return what the original shows there, RGB, its longer side as long as this."""
        left, top, right, bottom = self.area
        size = fitting(right - left, bottom - top, longest)
        return np.asarray(self.original.resize(size, Image.Resampling.LANCZOS, box=self.area))


class TileArtist(Protocol):
    """Redraws tiles: `NetworkTiles`, or a service that edits pictures."""

    def tile(self, tile: PictureTile) -> Draw:
        """Return what redraws a tile; tiles may be redrawn by several threads at once."""
        ...


class NetworkTiles:
    """Has the photo network redraw tiles, from the original and never from an enlarged copy of it.

    It outlines what it draws too darkly, and the plain enlargement leaves edges soft: an attempt is the mean of both.
    It draws the same each time, so further attempts keep more of the plain enlargement.

    Args:
        restorer: The network.
    """

    def __init__(self, restorer: Restorer) -> None:
        self._restorer = restorer

    def tile(self, tile: PictureTile) -> Draw:
        """Return what redraws a tile."""
        plain = np.asarray(tile.plain / 255, np.float32)
        drawn: Floats | None = None

        def draw(attempt: int, done: Done) -> Floats:
            nonlocal drawn
            if drawn is None:
                drawn = drawn_by(self._restorer, tile.copy(_seen_side(tile)), tile.plain, done)
            return np.asarray(plain + _NETWORK_SHARE * strength_of(attempt) * (drawn - plain), np.float32)

        return draw


@dataclass(frozen=True, slots=True)
class RefinerSettings:
    """How a picture is redrawn.

    Attributes:
        version: Colours and sizes, see above.
        tiles: Tiles to aim for; there are never more.
        workers: Tiles at once.
        max_retries: Attempts beyond the first, for a tile that fails the check.
        feather_px: Width in pixels over which neighbours blend, at most a quarter of a tile; 0 is a hard edge.
    """

    version: Literal["1", "2"] = "1"
    tiles: int = 4
    workers: int = 1
    max_retries: int = 3
    feather_px: int = 32


@dataclass(frozen=True, slots=True)
class TileReport:
    """What became of one tile.

    Attributes:
        box: Where it lies in the result.
        attempts: Times it was redrawn.
        scores: What the check measured of the best attempt, which is in the result where it passed.
    """

    box: PixelBox
    attempts: int
    scores: Scores


class TiledRefiner:
    """Redraws pictures, the same for the same picture, artist and settings.

    Args:
        artist: Redraws the tiles.
        check: Judges them.
        settings: How to do it.
    """

    def __init__(self, artist: TileArtist, check: ConsistencyCheck, settings: RefinerSettings) -> None:
        self._artist = artist
        self._check = check
        self._settings = settings

    def refine(
        self, original: Image.Image, plain: Image.Image, done: Done, keep: Keep | None = None
    ) -> tuple[Image.Image, tuple[TileReport, ...]]:
        """Redraw a picture.

        Args:
            original: The picture as it came, RGB or RGBA.
            plain: Its plain enlargement, which has the size and the transparency of the result.
            done: Called with the share that is done, 0 to 1, by several threads in turn; may raise to stop.
            keep: Takes every attempt beside the plain enlargement, with a name for it.
        """
        pixels = np.asarray(plain.convert("RGB"))
        tiles = self._tiles(
            _opaque(original), np.asarray(filled(np.asarray(plain)) if plain.mode == "RGBA" else pixels)
        )
        shares = _Shares(len(tiles), done)
        workers = min(self._settings.workers, len(tiles))
        blend, reports = Blend(pixels), []
        margin = 2 * self._margin(plain.size)
        failed = threading.Event()

        def redrawn(tile: PictureTile) -> Redrawn:
            # A failure ends the picture: no tile begins after it. Tiles begin in order, so the failed one is met first.
            if failed.is_set():
                raise CancelledError
            try:
                return self._redrawn(tile, shares.of(tile.number), keep is not None)
            except BaseException:
                failed.set()
                raise

        with ThreadPoolExecutor(workers, "tiles") as pool:
            running = [pool.submit(redrawn, tile) for _, tile in tiles]
            try:
                for (box, tile), future in zip(tiles, running, strict=True):
                    made = future.result()
                    if made.scores.passed:
                        blend.lay(box, made.pixels, feather(box, *plain.size, margin, "box"))
                    reports.append(TileReport(box, made.attempts, made.scores))
                    if keep is not None:
                        _keep_tried(keep, tile, made)
            finally:
                for future in running:
                    future.cancel()
        result = Image.fromarray(blend.result())
        if plain.mode == "RGBA":
            result.putalpha(plain.getchannel("A"))
        return result, tuple(reports)

    def _tiles(self, original: Image.Image, plain: Pixels) -> list[tuple[PixelBox, PictureTile]]:
        height, width = plain.shape[:2]
        rows, columns = grid(self._settings.tiles, width, height)
        margin = self._margin((width, height))
        left, top, right, bottom = sizes.cover(original.size, (width, height))
        across, down = (right - left) / width, (bottom - top) / height
        made: list[tuple[PixelBox, PictureTile]] = []
        for row in range(rows):
            for column in range(columns):
                box = PixelBox(
                    round(column * width / columns) - margin,
                    round(row * height / rows) - margin,
                    round((column + 1) * width / columns) + margin,
                    round((row + 1) * height / rows) + margin,
                ).within(width, height)
                area = (
                    left + box.left * across,
                    top + box.top * down,
                    min(float(original.width), left + box.right * across),
                    min(float(original.height), top + box.bottom * down),
                )
                part = np.ascontiguousarray(plain[box.slices])
                side = _drawn_side(self._settings.version, max(box.width, box.height))
                made.append((box, PictureTile(len(made), rows * columns, part, side, original, area)))
        return made

    def _margin(self, size: tuple[int, int]) -> int:
        """Return by how many pixels a tile reaches over its neighbours: half of what they blend over."""
        rows, columns = grid(self._settings.tiles, *size)
        # Softer edges than a quarter of a tile have no weights that add up to one.
        return min(self._settings.feather_px // 2, min(size[0] // columns, size[1] // rows) // 7)

    def _redrawn(self, tile: PictureTile, done: Done, keep_tried: bool) -> Redrawn:  # noqa: FBT001 -- passed on
        draw = self._artist.tile(tile)
        plain = np.asarray(tile.plain / 255, np.float32)
        match = match_colour if self._settings.version == "1" else match_histogram
        longest = min(_COMPARED_SIDE, tile.original_side, max(tile.plain.shape[:2]))
        made = best_attempt(
            tile.plain,
            lambda attempt, share: match(draw(attempt, share), plain),
            self._check,
            self._settings.max_retries,
            done,
            compared=fitting(tile.plain.shape[1], tile.plain.shape[0], longest),
            keep_tried=keep_tried,
        )
        done(1.0)
        return made


def grid(tiles: int, width: int, height: int) -> tuple[int, int]:
    """Return rows and columns: at most so many tiles, close to that number and close to squares."""
    best, least = (1, 1), math.inf
    for rows in range(1, tiles + 1):
        for columns in range(1, tiles // rows + 1):
            if rows > height or columns > width:
                continue
            shape = abs(math.log((width / columns) / (height / rows)))
            lost = shape + math.log(tiles / (rows * columns)) - 1e-9 * rows * columns
            if lost < least:
                best, least = (rows, columns), lost
    return best


def spared(made: Image.Image, plain: Image.Image, parts: Sequence[PixelBox], feather_px: int) -> Image.Image:
    """Return a redrawn picture with the ellipses in these parts as they were: faces that are worked on by themselves.

    Args:
        made: The picture, RGB or RGBA.
        plain: The picture as it was, of the same size and mode.
        parts: The parts; they may reach past the picture.
        feather_px: Width of the soft edge in pixels.
    """
    width, height = made.size
    blend = Blend(np.asarray(made.convert("RGB")))
    before = np.asarray(plain.convert("RGB"))
    for part in parts:
        if (box := part.within(width, height)).width and box.height:
            was = np.asarray(before[box.slices] / 255, np.float32)
            blend.lay(box, was, feather(part, width, height, feather_px, "ellipse"))
    result = Image.fromarray(blend.result())
    if made.mode == "RGBA":
        result.putalpha(made.getchannel("A"))
    return result


def resampled(image: Image.Image, width: int, height: int) -> Image.Image:
    """Return the plain enlargement that needs no network: Lanczos, cut evenly on both sides to fit the aspect."""
    box, size = sizes.cover(image.size, (width, height)), (width, height)
    made = _opaque(image).resize(size, Image.Resampling.LANCZOS, box=box, reducing_gap=3.0)
    if image.mode == "RGBA":
        made.putalpha(image.getchannel("A").resize(size, Image.Resampling.BICUBIC, box=box))
    return made


def _keep_tried(keep: Keep, tile: PictureTile, made: Redrawn) -> None:
    for attempt, after in enumerate(made.tried, 1):
        keep(f"tile-{tile.number + 1}-attempt-{attempt}", Image.fromarray(np.hstack([tile.plain, after])))


class _Shares:
    """Adds up how far tiles are that are worked on at once.

    Args:
        tiles: Number of tiles.
        done: Told of the share of all of them, by one thread at a time.
    """

    def __init__(self, tiles: int, done: Done) -> None:
        self._shares = [0.0] * tiles
        self._done = done
        self._lock = threading.Lock()

    def of(self, number: int) -> Done:
        """Return what takes note of one tile."""

        def share(within: float) -> None:
            with self._lock:
                self._shares[number] = max(within, self._shares[number])
                self._done(sum(self._shares) / len(self._shares))

        return share


def _opaque(image: Image.Image) -> Image.Image:
    return Image.fromarray(filled(np.asarray(image))) if image.mode == "RGBA" else image


def _drawn_side(version: str, longest: int) -> int:
    if version == "2":
        return DRAWN_SIDES[-1]
    return next((side for side in DRAWN_SIDES if side >= longest), DRAWN_SIDES[-1])


def _seen_side(tile: PictureTile) -> int:
    """Return the longer side of the copy that the network is given."""
    longest = min(tile.side // _NETWORK_SCALE, tile.original_side)
    width, height = fitting(tile.plain.shape[1], tile.plain.shape[0], longest)
    share = _NETWORK_PIXELS / tile.total
    return longest if width * height <= share else max(1, math.floor(longest * math.sqrt(share / (width * height))))
