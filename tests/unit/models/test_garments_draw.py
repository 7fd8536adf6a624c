"""The drawings: deterministic, rightly labelled, and never of a held-out pair."""

from __future__ import annotations

import numpy as np
import pytest

from models.garments.catalogue import (
    CLOTHS,
    COLOURS,
    GARMENTS,
    HELD_OUT,
    PRINTS,
    SEEN_PAIRS,
    TRAINED_PAIRS,
    UNSEEN_PAIRS,
    GarmentFacts,
)
from models.garments.draw import choose, contact_sheet, draw, draw_many, second_colours
from models.garments.ruler import Ruler


def test_catalogue_is_as_large_as_promised() -> None:
    assert len(GARMENTS) >= 10
    assert len(COLOURS) >= 10
    assert set(PRINTS) == {"plain", "stripes", "zigzags", "dots", "two colours"}
    assert len(UNSEEN_PAIRS) == len(HELD_OUT) == 16
    assert len(SEEN_PAIRS) + len(UNSEEN_PAIRS) == 100


def test_same_seed_draws_same_pictures() -> None:
    first, facts = draw_many(11, 6, 64)
    again, facts_again = draw_many(11, 6, 64)
    other, _ = draw_many(12, 6, 64)
    assert (first == again).all()
    assert facts == facts_again
    assert not (first == other).all()


def test_held_out_pairs_are_never_chosen_for_training() -> None:
    rng = np.random.default_rng(3)
    chosen = [choose(rng) for _ in range(4000)]
    assert not {(f.garment, f.colour) for f in chosen} & HELD_OUT
    assert not {(f.garment, f.second) for f in chosen} & HELD_OUT
    assert {(f.garment, f.colour) for f in chosen} == set(TRAINED_PAIRS)
    assert {f.print for f in chosen} == set(PRINTS)


@pytest.mark.parametrize("garment", GARMENTS)
def test_every_garment_leaves_a_clear_ground_around_itself(garment: str) -> None:
    rng = np.random.default_rng(5)
    for _ in range(8):
        made = draw(GarmentFacts(garment, "red"), rng)
        assert made.picture.shape == (64, 64, 3)
        assert 0.1 < made.silhouette.mean() < 0.6
        corners = made.picture[[0, 0, -1, -1], [0, -1, 0, -1]]
        assert (corners > 200).all()


def test_prints_leave_the_asked_colour_dominant() -> None:
    rng = np.random.default_rng(9)
    ruler = Ruler(64)
    for garment in GARMENTS:
        for kind in PRINTS:
            second = "" if kind == "plain" else "yellow"
            reading = ruler.read(draw(GarmentFacts(garment, "blue", kind, second), rng).picture)
            assert reading.colour == "blue"
            assert (reading.shares["yellow"] >= 0.1) == bool(second)


def test_second_colours_differ_from_the_first_and_keep_the_hold_out() -> None:
    for garment in GARMENTS:
        for colour in CLOTHS:
            seconds = second_colours(garment, colour)
            assert seconds
            assert colour not in seconds
            assert not {(garment, s) for s in seconds} & HELD_OUT


def test_contact_sheet_has_a_cell_per_picture() -> None:
    pictures = [np.full((8, 8, 3), i, np.uint8) for i in range(5)]
    assert contact_sheet(pictures, 3, 2).size == (60, 40)
