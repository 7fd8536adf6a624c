"""The wordings: those that measure are never those that teach."""

from __future__ import annotations

import numpy as np

from models.garments.catalogue import GARMENTS, HELD_OUT, GarmentFacts
from models.garments.draw import choose
from models.garments.evaluate import questions
from models.garments.prompts import (
    COLOUR_WORDS,
    EVALUATION_TEMPLATES,
    TRAIN_FRAMES,
    WORDS,
    evaluation_prompt,
    subject_of,
    training_prompt,
)


def test_evaluation_templates_are_disjoint_from_training_frames() -> None:
    assert not set(EVALUATION_TEMPLATES) & set(TRAIN_FRAMES)
    assert len(EVALUATION_TEMPLATES) == len(set(EVALUATION_TEMPLATES)) >= 8


def test_no_training_prompt_is_an_evaluation_prompt() -> None:
    measured = {a.prompt.lower() for a in questions(8)}
    rng = np.random.default_rng(17)
    taught = {training_prompt(choose(rng), rng)[0].lower().rstrip(".") for _ in range(4000)}
    assert not measured & taught


def test_training_prompts_name_their_garment_and_colour() -> None:
    rng = np.random.default_rng(23)
    for _ in range(300):
        facts = choose(rng)
        prompt = training_prompt(facts, rng)[0].lower()
        # Padding words may fall between the two halves of a word pair, so one half is enough.
        assert any(word.split()[-1] in prompt for word in WORDS[facts.garment])
        assert any(word.split()[-1] in prompt for word in COLOUR_WORDS[facts.colour])


def test_training_prompt_says_what_it_claims_to_say() -> None:
    rng = np.random.default_rng(29)
    facts = GarmentFacts("hat", "red", "stripes", "white", "cream")
    for _ in range(200):
        prompt, second, ground = training_prompt(facts, rng)
        assert ("white" in prompt.lower() or "ivory" in prompt.lower()) == second
        assert ("cream" in prompt.lower()) == ground


def test_questions_keep_seen_and_unseen_apart() -> None:
    asked = questions(8)
    seen = {(a.facts.garment, a.facts.colour) for a in asked if a.group == "seen"}
    unseen = {(a.facts.garment, a.facts.colour) for a in asked if a.group == "unseen"}
    assert unseen == HELD_OUT
    assert not seen & unseen
    assert len(seen) == 84
    assert sum(a.group == "seen" for a in asked) == 84 * 8
    assert len({a.seed for a in asked}) == len(asked)


def test_subjects_have_their_article() -> None:
    assert subject_of(GarmentFacts("dress", "red")) == "a red dress"
    assert subject_of(GarmentFacts("bag", "orange")) == "an orange bag"
    assert subject_of(GarmentFacts("trousers", "blue")) == "a pair of blue trousers"
    assert "with" in subject_of(GarmentFacts("hat", "red", "stripes", "white"))
    assert {evaluation_prompt(GarmentFacts(g, "red"), 0) for g in GARMENTS}
