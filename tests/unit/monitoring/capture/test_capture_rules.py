"""What risk means is what the rules' file says."""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from services.monitoring.capture.analysis.domain import RiskLevel
from services.monitoring.capture.analysis.rules import RulesError, parse_rules, read_rules, shipped, within_hours
from tests.unit.monitoring.capture.batches import ALIKE, GOOD, MIXED, NOBODY, NOON, SHARP, UNJUDGED, batch, photo

_RULE = """
profile = "mine"
[[risk]]
rule = "a"
words = "something"
"""
_ALERT = '[[alert]]\nrule = "b"\nseverity = "info"\nscore_least = 0\n'


@pytest.mark.parametrize(
    ("when", "found", "holds"),
    [
        ("people_least = 2", {"people": 2}, True),
        ("people_least = 2", {"people": 1}, False),
        ("people_least = 0", {}, False),  # what was not judged holds nothing
        ("people_most = 0", {"people": 0}, True),
        ("people_most = 0", {}, False),
        ("faces_least = 1", {"faces": 1}, True),
        ("faces_most = 0", {"faces": 1}, False),
        ("confidence_least = 0.6", {"confidence": 0.6}, True),
        ("confidence_least = 0.6", {"confidence": 0.59}, False),
        ('framing = ["close_up", "upper_body"]', {"framing": "upper_body"}, True),
        ('framing = ["close_up"]', {}, False),
        ('view = ["back"]', {"view": "back"}, True),
        ('view = ["back"]', {"view": "front"}, False),
        ('colour = ["red"]', {"colour": "red"}, True),
        ('subject = ["none", "object"]', {"subject": "object"}, True),
        ('subject = ["none"]', {}, False),
        ("garment_cut = true", {"cut": True}, True),
        ("garment_cut = true", {}, False),
        ("blurred = false", {"blurred": False}, True),
        ("blurred = false", {}, False),
        ('exposure = ["under"]', {"exposure": "under"}, True),
        ('exposure = ["under"]', {"exposure": "normal"}, False),
        ("failed = true", {"error": "broken"}, True),
        ("failed = false", {"error": "broken"}, False),
        ('cameras = ["front_*"]', {}, True),
        ('cameras = ["gate"]', {}, False),
        ('hours = "11:00-13:00"', {}, True),
        ('hours = "22:00-06:00"', {}, False),
        ("people_least = 1, blurred = true", {"people": 1, "blurred": True}, True),
        ("people_least = 1, blurred = true", {"people": 1, "blurred": False}, False),
    ],
)
def test_a_rule_holds_where_all_of_its_conditions_do(when: str, found: dict[str, Any], holds: bool) -> None:
    rules = parse_rules(f"{_RULE}points = 7\nwhen = {{ {when} }}\n")
    assert rules.judge(batch(photo(**found))).score == (7 if holds else 0)


@pytest.mark.parametrize(("photos", "score"), [(0, 0), (1, 20), (2, 26), (3, 32), (4, 35), (9, 35)])
def test_further_photos_add_up_to_a_bound(photos: int, score: int) -> None:
    rules = parse_rules(f"{_RULE}points = 20\neach = 6\nmost = 35\nwhen = {{ blurred = true }}\n")
    judged = rules.judge(batch(*(photo(n, blurred=n < photos) for n in range(10))))
    assert judged.score == score
    assert [count.photos for count in judged.counts] == ([photos] if photos else [])


def test_a_rule_may_need_several_photos() -> None:
    rules = parse_rules(f"{_RULE}points = 20\nphotos_least = 2\nwhen = {{ blurred = true }}\n")
    assert rules.judge(batch(photo(0, blurred=True))).score == 0
    assert rules.judge(batch(photo(0, blurred=True), photo(1, blurred=True))).score == 20


def test_the_score_ends_at_a_hundred() -> None:
    second = '[[risk]]\nrule = "b"\nwords = "more"\npoints = 70\nwhen = { people_most = 0 }\n'
    rules = parse_rules(f"{_RULE}points = 70\nwhen = {{ people_most = 5 }}\n{second}")
    judged = rules.judge(NOBODY)
    assert judged.score == 100
    assert [count.points for count in judged.counts] == [70, 70]


@pytest.mark.parametrize(
    ("score", "level"),
    [(0, "low"), (29, "low"), (30, "medium"), (59, "medium"), (60, "high"), (84, "high"), (85, "critical")],
)
def test_levels_begin_at_their_thresholds(score: int, level: str) -> None:
    rules = parse_rules(f"{_RULE}points = {score}\nwhen = {{ people_most = 0 }}\n")
    assert rules.judge(NOBODY).level == RiskLevel(level)


@pytest.mark.parametrize(
    ("hours", "clock", "within"),
    [
        ("22:00-06:00", "21:59", False),
        ("22:00-06:00", "22:00", True),
        ("22:00-06:00", "02:00", True),
        ("22:00-06:00", "06:00", False),
        ("08:00-18:00", "08:00", True),
        ("08:00-18:00", "18:00", False),
    ],
)
def test_hours_may_pass_midnight(hours: str, clock: str, within: bool) -> None:
    assert within_hours(hours, datetime.fromisoformat(f"2026-01-31T{clock}:00+00:00"), "UTC") is within


def test_hours_are_those_of_the_time_zone() -> None:
    assert within_hours("13:00-13:01", NOON, "Europe/Berlin")


@pytest.mark.parametrize(
    ("more", "raised"),
    [
        ("", True),
        ('cameras = ["front_*"]', True),
        ('cameras = ["gate", "yard"]', False),
        ('risks = ["a"]', True),
        ('risks = ["c"]', False),
        ('hours = "11:00-13:00"', True),
        ('hours = "13:00-11:00"', False),
        ("score_least = 50", True),
        ("score_least = 51", False),
    ],
)
def test_an_event_becomes_an_alert_where_a_rule_says_so(more: str, raised: bool) -> None:
    other = '[[risk]]\nrule = "c"\nwords = "other"\npoints = 5\nwhen = { people_least = 5 }\n'
    alert = _ALERT.replace("score_least = 0\n", "") if "score_least" in more else _ALERT
    rules = parse_rules(f"{_RULE}points = 50\nwhen = {{ people_most = 0 }}\n{other}{alert}{more}\n")
    assert [one.rule for one in rules.alerts(NOBODY, rules.judge(NOBODY))] == (["b"] if raised else [])


def test_an_alert_says_its_message() -> None:
    rules = parse_rules(
        f"{_RULE}points = 50\nwhen = {{ people_most = 0 }}\n{_ALERT}"
        'message = "{camera}, {photos} photos: {level} {score}; {summary}"\n'
    )
    assert rules.alert[0].say(NOBODY, rules.judge(NOBODY), "Nobody.") == "front_door, 2 photos: medium 50; Nobody."


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a = ", "Invalid value (at end of document)."),
        ('profile = "a"', "risk: is missing."),
        ('profile = "a"\nrisk = []', "risk: List should have at least 1 item"),
        ('profile = "A"\nrisk = []', "profile: String should match pattern"),
        (f"{_RULE}points = 5", "risk 1 (a), when: is missing."),
        (f"{_RULE}points = 5\nwhen = {{}}", "risk 1 (a), when: must have at least one condition."),
        (f"{_RULE}points = 101\nwhen = {{ blurred = true }}", "risk 1 (a), points: Input should be less than or equal"),
        (f"{_RULE}points = true\nwhen = {{ blurred = true }}", "risk 1 (a), points: Input should be a valid integer."),
        (f"{_RULE}points = 5\nwhen = {{ blur = true }}", "risk 1 (a), when.blur: is not known here."),
        (
            f'{_RULE}points = 5\nwhen = {{ framing = ["wide"] }}',
            "risk 1 (a), when.framing.1: Input should be 'full_body'",
        ),
        (f'{_RULE}points = 5\nwhen = {{ hours = "9-17" }}', "risk 1 (a), when.hours: must be two different times"),
        (
            f'{_RULE}points = 5\nwhen = {{ hours = "09:00-09:00" }}',
            "risk 1 (a), when.hours: must be two different times",
        ),
        (f"{_RULE}points = 5\nwhen = {{ blurred = true }}\nlevels = 3", "risk 1 (a), levels: is not known here."),
        (f"levels = {{ medium = 70 }}\n{_RULE}points = 5\nwhen = {{ blurred = true }}", "levels: must rise"),
        (f'time_zone = "Mars/Base"\n{_RULE}points = 5\nwhen = {{ blurred = true }}', "time_zone: must be a time zone"),
        (
            f"{_RULE}points = 5\nwhen = {{ blurred = true }}\n{_ALERT}message = '{{camera.name}}'",
            "alert 1 (b), message: names {camera.name}; it may name {camera}, {level}",
        ),
        (
            f"{_RULE}points = 5\nwhen = {{ blurred = true }}\n{_ALERT}message = '{{camera'",
            "alert 1 (b), message: has a brace without its partner.",
        ),
        (
            f"{_RULE}points = 5\nwhen = {{ blurred = true }}\n{_ALERT}message = '{{camera:d}}'",
            "alert 1 (b), message: has a place whose format does not fit what stands there.",
        ),
        (
            f"{_RULE}points = 5\nwhen = {{ blurred = true }}\n{_ALERT}webhook_url = 'file:///etc/passwd'",
            "alert 1 (b), webhook_url: must be an http or https address.",
        ),
        (
            f"{_RULE}points = 5\nwhen = {{ blurred = true }}\n{_ALERT}risks = ['x']",
            "has an [[alert]] b whose `risks` names x, which is no [[risk]].",
        ),
        (
            f"{_RULE}points = 5\nwhen = {{ blurred = true }}\n{_ALERT}{_ALERT}",
            "has two [[alert]] named b.",
        ),
        (
            f"{_RULE}points = 5\nwhen = {{ blurred = true }}\n{_ALERT.replace('info', 'grave')}",
            "alert 1 (b), severity: Input should be 'info', 'warning' or 'critical'.",
        ),
    ],
)
def test_rules_that_do_not_hold_are_refused_by_a_sentence_that_names_the_place(text: str, sentence: str) -> None:
    with pytest.raises(RulesError) as refused:
        parse_rules(text)
    assert str(refused.value).startswith(sentence)


def test_a_refused_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "rules.toml"
    file.write_text('profile = "a"', encoding="utf-8")
    with pytest.raises(RulesError, match=r"The rules of capture in .*rules\.toml: risk: is missing\."):
        read_rules(str(file))
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(RulesError, match="are not text in UTF-8"):
        read_rules(str(file))
    with pytest.raises(RulesError, match=r"neither a profile \(guard, studio\) nor a file"):
        read_rules(str(tmp_path / "away.toml"))


def test_a_file_may_hold_the_rules_of_a_shipped_profile(tmp_path: Path) -> None:
    for name in shipped():
        assert read_rules(name).profile == name


@pytest.mark.parametrize(
    ("found", "rules"),
    [
        ({**GOOD, **SHARP}, []),
        ({"people": 0, "subject": "none", **SHARP}, ["no_subject"]),
        ({"people": 0, "subject": "object", **SHARP}, []),
        ({**GOOD, **SHARP, "cut": True}, ["garment_cut"]),
        ({**GOOD, **SHARP, "framing": "close_up"}, ["closed_framing"]),
        ({**GOOD, **SHARP, "blurred": True}, ["blurred"]),
        ({**GOOD, **SHARP, "exposure": "under"}, ["wrong_exposure"]),
        ({**GOOD, **SHARP, "exposure": "over"}, ["wrong_exposure"]),
        ({"error": "broken"}, ["not_judged"]),
    ],
)
def test_the_studio_looks_for_frames_to_shoot_again(found: dict[str, Any], rules: list[str]) -> None:
    assert [count.rule for count in read_rules("studio").judge(batch(photo(**found))).counts] == rules


def test_the_studio_alerts_where_many_frames_have_faults() -> None:
    studio = read_rules("studio")
    assert studio.alerts(ALIKE, studio.judge(ALIKE)) == []
    bad = batch(*(photo(n, subject="none", blurred=True, exposure="under") for n in range(3)))
    judged = studio.judge(bad)
    assert (judged.score, judged.level) == (100, RiskLevel.CRITICAL)
    assert [one.rule for one in studio.alerts(bad, judged)] == ["shoot_again", "stop_the_shoot"]


def test_the_guard_looks_for_people_at_night_above_all() -> None:
    guard = read_rules("guard")
    assert guard.judge(NOBODY).score == 0
    assert guard.judge(UNJUDGED).score == 0
    by_day = guard.judge(ALIKE)
    assert (by_day.score, by_day.level) == (50, RiskLevel.MEDIUM)
    night = batch(photo(at=NOON + timedelta(hours=11), **GOOD))
    judged = guard.judge(night)
    assert (judged.score, judged.level) == (75, RiskLevel.HIGH)
    assert [one.rule for one in guard.alerts(night, judged)] == ["somebody_there", "somebody_at_night"]
    unsure = batch(photo(people=1, confidence=0.4))
    assert guard.judge(unsure).score == 0


def test_a_mixed_batch_is_scored_by_every_rule_that_holds() -> None:
    assert read_rules("studio").judge(MIXED).score == 20 + 10 + 15 + 15 + 5
