import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from modelkit.consistency import ConsistencyCheck, Thresholds
from modelkit.patches import Floats, PixelBox
from modelkit.redraw import Done, Draw
from modelkit.refiner import (
    NetworkTiles,
    PictureTile,
    RefinerSettings,
    TiledRefiner,
    TileReport,
    grid,
    resampled,
    spared,
)

PHOTO = Path(__file__).parent / "data" / "astronaut.jpg"
NO_CHECK, SSIM = ConsistencyCheck(Thresholds(ssim=0)), ConsistencyCheck(Thresholds())


class Sharpener:
    """Enlarges by interpolation and sharpens, in the network's place."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def restore(self, image: Image.Image, step: Callable[[int, int], None] | None = None) -> Image.Image:
        self.seen.append(image.size)
        if step is not None:
            step(1, 2)
            step(2, 2)
        large = image.resize((image.width * 4, image.height * 4), Image.Resampling.BICUBIC)
        return large.filter(ImageFilter.UnsharpMask(8, 150, 0))


class Shifter:
    """Draws every tile darker or brighter, by its number and attempt, and takes note of what it was asked."""

    def __init__(self, *shifts: float) -> None:
        self.shifts = shifts
        self.asked: list[tuple[int, int]] = []
        self.tiles: list[PictureTile] = []

    def tile(self, tile: PictureTile) -> Draw:
        self.tiles.append(tile)

        def draw(attempt: int, done: Done) -> Floats:
            self.asked.append((tile.number, attempt))
            shift = self.shifts[tile.number % len(self.shifts)]
            return np.asarray(tile.plain / 255 + shift, np.float32)

        return draw


class Liar:
    """Draws noise: nothing of what was there."""

    def tile(self, tile: PictureTile) -> Draw:
        noise = np.random.default_rng(tile.number).random(tile.plain.shape)
        return lambda attempt, done: np.asarray(noise, np.float32)


def photo(width: int = 120, height: int = 140) -> Image.Image:
    with Image.open(PHOTO) as image:
        return image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)


def refined(
    artist: object, image: Image.Image, plain: Image.Image, check: ConsistencyCheck = NO_CHECK, **settings: object
) -> tuple[Image.Image, tuple[TileReport, ...], dict[str, Image.Image]]:
    kept: dict[str, Image.Image] = {}
    chosen = RefinerSettings(**settings)  # type: ignore[arg-type] # its members
    refiner = TiledRefiner(artist, check, chosen)  # type: ignore[arg-type] # one of those above
    made, reports = refiner.refine(image, plain, lambda _: None, kept.__setitem__)
    return made, reports, kept


@pytest.mark.parametrize(
    ("tiles", "size", "expected"),
    [
        (1, (900, 300), (1, 1)),
        (2, (900, 300), (1, 2)),
        (4, (800, 800), (2, 2)),
        (4, (1600, 400), (1, 4)),
        (6, (900, 600), (2, 3)),
        (6, (600, 900), (3, 2)),
        (7, (800, 800), (2, 3)),
        (64, (4000, 4000), (8, 8)),
        (4, (1, 1), (1, 1)),
        (4, (1, 90), (4, 1)),
    ],
)
def test_the_grid_follows_the_aspect_and_has_no_more_tiles_than_asked(
    tiles: int, size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert grid(tiles, *size) == expected


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("feather_px", [0, 16])
def test_tiles_that_change_nothing_leave_the_plain_enlargement(version: str, feather_px: int) -> None:
    image = photo(61, 47)
    plain = image.resize((183, 141), Image.Resampling.LANCZOS)
    made, reports, _ = refined(Shifter(0.0), image, plain, version=version, feather_px=feather_px, tiles=6)
    assert made.size == (183, 141)
    assert np.abs(np.asarray(made).astype(int) - np.asarray(plain)).max() <= 1
    assert [report.attempts for report in reports] == [1] * 6


def test_all_of_the_picture_is_redrawn() -> None:
    plain = photo()
    _, reports, _ = refined(Shifter(0.0), plain, plain, feather_px=0, tiles=5)
    covered = np.zeros((140, 120), int)
    for report in reports:
        covered[report.box.slices] += 1
    assert (covered == 1).all()


def test_neighbours_blend_so_that_no_seam_is_left() -> None:
    # Version 1 takes differences of coarse colours away; what is left of a step would show at the edge between tiles.
    plain = Image.new("RGB", (240, 240), (120, 120, 120))

    def steepest(feather_px: int) -> float:
        # Histograms of a plain tile are one level each, so this artist's fine pattern is what differs.
        class Pattern:
            def tile(self, tile: PictureTile) -> Draw:
                across = np.arange(tile.plain.shape[1]) % 2 * 2 - 1
                amount = 0.1 if tile.number % 2 else -0.1
                pattern = np.broadcast_to(across[None, :, None] * amount, tile.plain.shape)
                return lambda attempt, done: np.asarray(tile.plain / 255 + pattern, np.float32)

        made, *_ = refined(Pattern(), plain, plain, feather_px=feather_px, tiles=4)
        rows = np.asarray(made).astype(float)[60, :, 0] - 120
        strength = np.convolve(rows * (np.arange(240) % 2 * 2 - 1), [0.5, 0.5], "valid")
        return float(np.abs(np.diff(strength)[4:-4]).max())

    assert steepest(32) < 4
    assert steepest(0) > 20


def test_colours_are_kept_by_either_version() -> None:
    image = photo()
    for version in ("1", "2"):
        made, *_ = refined(Shifter(0.06, -0.06), image, image, version=version)
        differences = np.asarray(made).astype(float) - np.asarray(image)
        assert np.abs(differences.mean((0, 1))).max() < 2, version
        assert np.abs(differences).mean() < 4, version


def test_a_tile_is_drawn_again_until_it_passes_and_stays_plain_where_it_never_does() -> None:
    image = photo()
    made, reports, kept = refined(Liar(), image, image, SSIM, max_retries=2, tiles=2)
    assert made.tobytes() == image.tobytes()
    assert [(report.attempts, report.scores.passed) for report in reports] == [(3, False)] * 2
    assert sorted(kept) == [f"tile-{tile}-attempt-{attempt}" for tile in (1, 2) for attempt in (1, 2, 3)]
    for name, report in (("tile-1-attempt-1", reports[0]), ("tile-2-attempt-3", reports[1])):
        assert kept[name].size == (2 * report.box.width, report.box.height)
    artist = Shifter(0.0)
    refined(artist, image, image, SSIM, max_retries=2, tiles=2)
    assert artist.asked == [(0, 0), (1, 0)]


def test_tiles_are_compared_at_the_size_that_the_original_has() -> None:
    sizes: list[tuple[int, ...]] = []

    class Network:
        def distance(self, first: np.ndarray, second: np.ndarray) -> float:
            sizes.extend((first.shape, second.shape))
            return 0.1

    check = ConsistencyCheck(Thresholds(ssim=0, lpips=0.5), {"lpips": Network()})
    image = photo(60, 60)
    refined(Shifter(0.0), image, image.resize((240, 240)), check, tiles=4, feather_px=0)
    assert set(sizes) == {(30, 30, 3)}


@pytest.mark.parametrize(("version", "side"), [("1", 1024), ("2", 4096)])
def test_version_1_draws_what_covers_a_tile_and_version_2_always_the_most(version: str, side: int) -> None:
    artist = Shifter(0.0)
    refined(artist, photo(), photo(), version=version)
    assert {tile.side for tile in artist.tiles} == {side}
    large = Image.new("RGB", (2100, 10))
    refined(artist, large, large, version="1", tiles=1)
    assert artist.tiles[-1].side == 4096


def test_the_network_sees_the_original_and_no_enlarged_copy_of_it() -> None:
    sharpener, image = Sharpener(), photo(64, 64)
    made, reports, _ = refined(NetworkTiles(sharpener), image, resampled(image, 192, 192), SSIM, tiles=4, feather_px=0)
    assert sharpener.seen == [(32, 32)] * 4
    assert [(report.attempts, report.scores.passed) for report in reports] == [(1, True)] * 4
    plain = np.asarray(resampled(image, 192, 192)).astype(float)

    def detail(pixels: np.ndarray) -> float:
        return float(np.abs(np.diff(pixels.astype(float), axis=1)).mean())

    assert detail(np.asarray(made)) > 1.1 * detail(plain)
    again, *_ = refined(NetworkTiles(Sharpener()), image, resampled(image, 192, 192), SSIM, tiles=4, feather_px=0)
    assert again.tobytes() == made.tobytes()


def test_a_further_attempt_of_the_network_draws_nothing_anew() -> None:
    sharpener, image = Sharpener(), photo(64, 64)
    strict = ConsistencyCheck(Thresholds(ssim=1))
    _, reports, _ = refined(NetworkTiles(sharpener), image, image, strict, tiles=1, max_retries=4)
    assert (reports[0].attempts, len(sharpener.seen)) == (5, 1)


def test_large_pictures_are_drawn_from_reduced_copies() -> None:
    sharpener = Sharpener()
    artist = Shifter(0.0)
    image = Image.new("RGB", (2048, 2048), "teal")
    refined(artist, image, image, version="2", tiles=1)
    NetworkTiles(sharpener).tile(artist.tiles[0])(0, lambda _: None)
    assert sharpener.seen == [(1024, 1024)]


def test_transparency_is_kept_and_hidden_colours_do_not_show() -> None:
    image = photo(80, 80).convert("RGBA")
    alpha = np.zeros((80, 80), np.uint8)
    alpha[:, 20:] = 255
    image.putalpha(Image.fromarray(alpha))
    pixels = np.asarray(image).copy()
    pixels[:, :20, :3] = (255, 0, 255)
    image = Image.fromarray(pixels)
    plain = resampled(image, 160, 160)
    assert (plain.mode, plain.size) == ("RGBA", (160, 160))
    seen = np.asarray(plain)[:, 41:, :3].astype(int)
    truth = np.asarray(photo(80, 80).resize((160, 160), Image.Resampling.LANCZOS))[:, 41:].astype(int)
    assert np.abs(seen - truth).mean() < 2
    artist = Shifter(0.0)
    made, *_ = refined(artist, image, plain)
    assert made.getchannel("A").tobytes() == plain.getchannel("A").tobytes()
    for tile in artist.tiles:
        for shown in (tile.plain, tile.copy(40)):
            assert not ((shown[..., 0] > 230) & (shown[..., 1] < 60) & (shown[..., 2] > 230)).any()


def test_tiles_are_drawn_at_once_up_to_the_number_of_workers() -> None:
    together = threading.Barrier(3, timeout=60)

    class Waiting:
        def tile(self, tile: PictureTile) -> Draw:
            def draw(attempt: int, done: Done) -> Floats:
                together.wait()
                return np.asarray(tile.plain / 255, np.float32)

            return draw

    image = photo(90, 30)
    made, reports, _ = refined(Waiting(), image, image, tiles=3, workers=3)
    assert (made.size, len(reports)) == (image.size, 3)


def test_a_failure_of_one_tile_ends_the_work_and_begins_no_other() -> None:
    begun: list[int] = []

    class Failing:
        def tile(self, tile: PictureTile) -> Draw:
            def draw(attempt: int, done: Done) -> Floats:
                begun.append(tile.number)
                raise InterruptedError

            return draw

    with pytest.raises(InterruptedError):
        refined(Failing(), photo(), photo(), tiles=16, workers=1)
    assert begun == [0]


def test_progress_rises_to_the_end_over_threads() -> None:
    told: list[float] = []
    refiner = TiledRefiner(NetworkTiles(Sharpener()), NO_CHECK, RefinerSettings(tiles=6, workers=3))
    refiner.refine(photo(), photo(), told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_faces_are_spared_in_their_ellipses() -> None:
    plain, made = photo(), Image.new("RGB", (120, 140), "lime")
    result = np.asarray(spared(made, plain, [PixelBox(30, 30, 90, 90), PixelBox(500, 500, 600, 600)], 8))
    np.testing.assert_array_equal(result[50:70, 50:70], np.asarray(plain)[50:70, 50:70])
    assert (result[:30] == (0, 255, 0)).all()
    assert (result[31, 31] == (0, 255, 0)).all()
