"""What risk means at this installation: rules of a file, and the score that follows from them.

A rule holds for a photo if all of its conditions do; a condition on what was not judged never holds. A rule that holds
for n photos of a batch adds min(most, points + each * (n - 1)), where n is at least `photos_least`. The score is the
sum over all rules, at most 100; the level is the highest one whose least score it reaches.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from dataclasses import field
from datetime import datetime, time
from fnmatch import fnmatchcase
from pathlib import Path
from string import Formatter
from typing import Annotated, Literal, Self, TypeAlias
from zoneinfo import ZoneInfo

from pydantic import AfterValidator, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from services.monitoring.capture.analysis.domain import (
    BatchFacts,
    ExposureVerdict,
    PhotoFacts,
    Risk,
    RiskLevel,
    RuleCount,
    SubjectKind,
)

PROFILES = Path(__file__).parent / "profiles"
_MOST_BYTES = 256 * 1024
_STRICT = ConfigDict(extra="forbid", strict=True)
# Of the file's own names: a message may not reach into Python's objects.
_PLACES = frozenset({"camera", "score", "level", "summary", "photos"})

Points: TypeAlias = Annotated[int, Field(ge=0, le=100)]
_Count: TypeAlias = Annotated[int, Field(ge=0, le=1_000_000)]
_Name: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_Words: TypeAlias = Annotated[str, StringConstraints(min_length=1, max_length=200)]
_FramingName: TypeAlias = Literal[
    "full_body", "three_quarter_upper", "upper_body", "three_quarter_lower", "lower_body", "close_up"
]
AlertSeverityName: TypeAlias = Literal["info", "warning", "critical"]


class RulesError(Exception):
    """A file of rules does not hold; its text is a sentence that names the place."""


def _hours(text: str) -> str:
    begin, dash, end = text.partition("-")
    try:
        if not dash or _clock(begin) == _clock(end):
            raise ValueError
    except ValueError:
        raise ValueError("must be two different times of a day, such as 22:00-06:00") from None
    return text


def _clock(text: str) -> time:
    if len(text) != 5:
        raise ValueError
    return time.fromisoformat(text)


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (OSError, ValueError, KeyError):
        raise ValueError("must be a time zone that this machine knows, such as UTC or Europe/Berlin") from None
    return name


def _message(text: str) -> str:
    try:
        places = {name for _, name, _, _ in Formatter().parse(text) if name is not None}
    except ValueError:
        raise ValueError("has a brace without its partner") from None
    if unknown := places - _PLACES:
        raise ValueError(f"names {{{min(unknown)}}}; it may name {', '.join(f'{{{one}}}' for one in sorted(_PLACES))}")
    try:
        # Found out at an event, it would keep every later batch of the rule from being judged.
        text.format(camera="a", score=1, level="low", summary="a", photos=1)
    except (ValueError, LookupError):
        raise ValueError("has a place whose format does not fit what stands there") from None
    return text


def _address(url: str) -> str:
    if not url.startswith(("https://", "http://")):
        raise ValueError("must be an http or https address")
    return url


Hours: TypeAlias = Annotated[str, AfterValidator(_hours)]


def within_hours(hours: Hours, moment: datetime, zone: str) -> bool:
    """Tell whether a moment lies within hours of the day, which may pass midnight; the end is not within."""
    begin, _, end = hours.partition("-")
    now, first, last = moment.astimezone(ZoneInfo(zone)).time(), _clock(begin), _clock(end)
    return first <= now < last if first < last else now >= first or now < last


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class PhotoCondition:
    """What has to hold for a photo; at least one member is set, and all that are must hold."""

    people_least: _Count | None = None
    people_most: _Count | None = None
    confidence_least: Annotated[float, Field(ge=0, le=1)] | None = None
    faces_least: _Count | None = None
    faces_most: _Count | None = None
    framing: list[_FramingName] | None = None
    view: list[Literal["front", "back", "side"]] | None = None
    colour: list[_Words] | None = None
    subject: list[SubjectKind] | None = None
    garment_cut: bool | None = None
    blurred: bool | None = None
    exposure: list[ExposureVerdict] | None = None
    failed: bool | None = None
    cameras: list[_Words] | None = None
    hours: Hours | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if all(getattr(self, name) is None for name in self.__slots__):
            raise ValueError("must have at least one condition")
        return self

    def holds(self, photo: PhotoFacts, camera: str, zone: str) -> bool:
        """Tell whether it holds for a photo."""
        asked = (
            (self.people_least, lambda least: photo.people is not None and photo.people >= least),
            (self.people_most, lambda most: photo.people is not None and photo.people <= most),
            (self.confidence_least, lambda least: photo.confidence is not None and photo.confidence >= least),
            (self.faces_least, lambda least: photo.faces is not None and photo.faces >= least),
            (self.faces_most, lambda most: photo.faces is not None and photo.faces <= most),
            (self.framing, lambda names: photo.framing in names),
            (self.view, lambda names: photo.view in names),
            (self.colour, lambda names: photo.colour in names),
            (self.subject, lambda names: photo.subject in names),
            (self.garment_cut, lambda wanted: photo.cut is wanted),
            (self.blurred, lambda wanted: photo.blurred is wanted),
            (self.exposure, lambda names: photo.exposure in names),
            (self.failed, lambda wanted: bool(photo.error) is wanted),
            (self.cameras, lambda patterns: any(fnmatchcase(camera, one) for one in patterns)),
            (self.hours, lambda hours: within_hours(hours, photo.taken_at, zone)),
        )
        return all(value is None or test(value) for value, test in asked)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class RiskRule:
    """One thing that makes photos grave.

    Attributes:
        rule: Its name.
        words: What it means, as people say it of a photo.
        when: When it holds for a photo.
        points: What the first such photo adds.
        each: What every further one adds.
        most: What all of them add at most.
        photos_least: In how many photos it has to hold before it counts.
    """

    rule: _Name
    words: _Words
    when: PhotoCondition
    points: Points
    each: Points = 0
    most: Points = 100
    photos_least: Annotated[int, Field(ge=1, le=1_000_000)] = 1


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class AlertRule:
    """When an event becomes an alert.

    Attributes:
        rule: Its name.
        severity: How grave the alert is.
        score_least: Least score of the event.
        cameras: Patterns of cameras, of which one has to fit.
        risks: Names of rules, of which one has to hold; any where empty.
        hours: Hours of the day in which the event has to begin.
        message: What to say; may name {camera}, {score}, {level}, {summary} and {photos}.
        pause_seconds: For how long a camera raises no further alert by this rule.
        webhook_url: Who is told; the address of the settings where empty.
    """

    rule: _Name
    severity: AlertSeverityName
    score_least: Points
    cameras: list[_Words] = field(default_factory=lambda: ["*"])
    risks: list[_Name] = field(default_factory=list)
    hours: Hours | None = None
    message: Annotated[str, StringConstraints(min_length=1, max_length=500), AfterValidator(_message)] = (
        "{camera}: {level} risk ({score} of 100). {summary}"
    )
    pause_seconds: Annotated[int, Field(ge=0, le=7 * 24 * 3600)] = 0
    webhook_url: Annotated[str, StringConstraints(max_length=2048), AfterValidator(_address)] | None = None

    def fits(self, camera: str, started_at: datetime, risk: Risk, zone: str) -> bool:
        """Tell whether an event becomes an alert by it."""
        held = {count.rule for count in risk.counts}
        return (
            risk.score >= self.score_least
            and any(fnmatchcase(camera, one) for one in self.cameras)
            and (not self.risks or not held.isdisjoint(self.risks))
            and (self.hours is None or within_hours(self.hours, started_at, zone))
        )

    def say(self, facts: BatchFacts, risk: Risk, summary: str) -> str:
        """Return what the alert says of an event."""
        places = {"camera": facts.camera, "score": risk.score, "level": str(risk.level), "summary": summary}
        return self.message.format(photos=len(facts.photos), **places)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class LevelBounds:
    """The least score of each level above `low`."""

    medium: Points = 30
    high: Points = 60
    critical: Points = 85

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if not 0 < self.medium < self.high < self.critical:
            raise ValueError("must rise: 0 < medium < high < critical")
        return self

    def level(self, score: int) -> RiskLevel:
        """Return the level of a score."""
        bounds = ((RiskLevel.CRITICAL, self.critical), (RiskLevel.HIGH, self.high), (RiskLevel.MEDIUM, self.medium))
        return next((level for level, least in bounds if score >= least), RiskLevel.LOW)


@dataclass(frozen=True, slots=True, kw_only=True, config=_STRICT)
class RiskRules:
    """All rules of an installation.

    Attributes:
        profile: What they are called.
        time_zone: Whose hours count.
        levels: Which score is which level.
        risk: What makes a batch grave.
        alert: Which events become alerts.
    """

    profile: _Name
    risk: Annotated[list[RiskRule], Field(min_length=1, max_length=100)]
    alert: Annotated[list[AlertRule], Field(max_length=100)] = field(default_factory=list)
    levels: LevelBounds = field(default_factory=LevelBounds)
    time_zone: Annotated[str, AfterValidator(_zone)] = "UTC"

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        for title, names in (("risk", self.risk), ("alert", self.alert)):
            seen = [one.rule for one in names]
            if twice := next((name for name in seen if seen.count(name) > 1), None):
                raise ValueError(f"has two [[{title}]] named {twice}")
        known = {one.rule for one in self.risk}
        for alert in self.alert:
            if unknown := next((name for name in alert.risks if name not in known), None):
                raise ValueError(f"has an [[alert]] {alert.rule} whose `risks` names {unknown}, which is no [[risk]]")
        return self

    def judge(self, facts: BatchFacts) -> Risk:
        """Return how grave a batch is."""
        counts = [count for rule in self.risk if (count := self._count(rule, facts)) is not None]
        score = min(100, sum(count.points for count in counts))
        return Risk(score, self.levels.level(score), counts)

    def alerts(self, facts: BatchFacts, risk: Risk) -> list[AlertRule]:
        """Return the rules by which an event becomes an alert."""
        return [one for one in self.alert if one.fits(facts.camera, facts.started_at, risk, self.time_zone)]

    def webhook_of(self, name: str) -> str | None:
        """Return who is told of alerts of a rule; None where the rule names nobody, or is there no more."""
        return next((one.webhook_url for one in self.alert if one.rule == name), None)

    def _count(self, rule: RiskRule, facts: BatchFacts) -> RuleCount | None:
        photos = sum(rule.when.holds(photo, facts.camera, self.time_zone) for photo in facts.photos)
        if photos < rule.photos_least:
            return None
        return RuleCount(rule.rule, rule.words, photos, min(rule.most, rule.points + rule.each * (photos - 1)))


_RULES = TypeAdapter(RiskRules)


def shipped() -> list[str]:
    """Return the names of the profiles that ship."""
    return sorted(path.stem for path in PROFILES.glob("*.toml"))


def read_rules(name: str) -> RiskRules:
    """Read rules.

    Args:
        name: A profile that ships, or the path of a TOML file.

    Raises:
        RulesError: There is no such file, or it does not hold.
    """
    path = PROFILES / f"{name}.toml" if name in shipped() else Path(name)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RulesError(
            f"The rules of capture cannot be read: {name} is neither a profile ({', '.join(shipped())}) nor a file "
            f"({error.strerror})."
        ) from None
    if len(content) > _MOST_BYTES:
        raise RulesError(f"The rules of capture in {path} are larger than {_MOST_BYTES // 1024} KiB.")
    try:
        return parse_rules(content.decode("utf-8"))
    except UnicodeDecodeError:
        raise RulesError(f"The rules of capture in {path} are not text in UTF-8.") from None
    except RulesError as error:
        raise RulesError(f"The rules of capture in {path}: {error}") from None


def parse_rules(text: str) -> RiskRules:
    """Parse rules.

    Raises:
        RulesError: They do not hold.
    """
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RulesError(f"{error}.") from None
    try:
        # As JSON, because a table then makes a value also where types are strict.
        return _RULES.validate_json(json.dumps(document, default=str))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise RulesError(f"{_place(document, first['loc'])}{_sentence(first['type'], first['msg'])}.") from None


def _place(document: object, loc: Sequence[int | str]) -> str:
    """Return where in the file something stands: `risk 2 (blurred), when.hours: `."""
    place, names = "", list[str]()
    for part in loc:
        try:
            document = document[part]  # type: ignore[index]  # lists and tables, as the file has them
        except (KeyError, IndexError, TypeError):
            document = None
        if isinstance(part, int) and isinstance(document, dict):
            place, names = f"{'.'.join(names)} {part + 1} ({document.get('rule', 'without a name')})", []
        else:
            names.append(str(part + 1) if isinstance(part, int) else part)
    place = ", ".join(one for one in (place, ".".join(names)) if one)
    return f"{place}: " if place else ""


def _sentence(kind: str, message: str) -> str:
    told = {"missing": "is missing", "unexpected_keyword_argument": "is not known here"}
    return told.get(kind, message.removeprefix("Value error, "))
