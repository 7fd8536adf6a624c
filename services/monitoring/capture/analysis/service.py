"""How a closed batch becomes an event, and what callers ask of events."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, Protocol
from uuid import UUID, uuid5

from meshkit import metrics
from meshkit.access import Caller
from meshkit.errors import TRANSIENT, ErrorKind, MeshError
from meshkit.logging import get_logger
from meshkit.loops import Loop
from services.monitoring.capture.access import CaptureAccess
from services.monitoring.capture.alerts.domain import AlertGrade, NewAlert
from services.monitoring.capture.analysis.claims import refusal
from services.monitoring.capture.analysis.domain import (
    AskedText,
    BatchFacts,
    EventDraft,
    EventRecord,
    EventsWanted,
    Risk,
    TextBy,
)
from services.monitoring.capture.analysis.rules import RiskRules
from services.monitoring.capture.analysis.store import EventStore
from services.monitoring.capture.analysis.text_calls import ModelAnswer
from services.monitoring.capture.analysis.wording import SYSTEM, plain_reasoning, plain_summary, prompt
from services.monitoring.capture.errors import event_not_found
from services.monitoring.capture.pages import PageFound, PageWanted

_log = get_logger(__name__)

_BATCH = 20
_EVENTS = metrics.counter("capture_events", "Events made of batches, by level", ("level",))
_TEXTS = metrics.counter("capture_model_texts", "Summaries asked of a language model, by outcome", ("outcome",))


class TextModel(Protocol):
    """A language model that is asked by tasks (`text_calls.TextCalls`)."""

    async def ask(self, task_id: UUID, system: str, prompt: str, reference: str) -> None:
        """Ask."""
        ...

    async def look(self, task_id: UUID) -> ModelAnswer | None:
        """Return the answer, if there is one."""
        ...

    async def give_up(self, task_id: UUID) -> None:
        """Wait no longer."""
        ...


class AnalysisWorker:
    """The loop `analysis_worker`.

    An event is told with the words of its facts as soon as its batch is judged. Where a language model is asked, its
    text follows by an update, if it comes in time and names only what was found.

    Args:
        store: The rows.
        rules: What risk means.
        model: The language model; None where none is asked.
        answer_seconds: How long an event waits for it.
        webhook_url: Who is told of alerts whose rule names nobody; empty where nobody is.
        on_alerts: Called where alerts may have been raised.
    """

    def __init__(
        self,
        store: EventStore,
        rules: RiskRules,
        model: TextModel | None,
        *,
        answer_seconds: float,
        webhook_url: str,
        on_alerts: Callable[[], None],
    ) -> None:
        self._store = store
        self._rules = rules
        self._model = model
        self._answer_seconds = answer_seconds
        self._webhook_url = webhook_url
        self._on_alerts = on_alerts
        self.loop = Loop("analysis_worker", self.run, 1.0)

    def wake(self) -> None:
        """Have batches judged soon."""
        self.loop.wake()

    async def run(self) -> bool:
        """Judge batches that are complete, and take what a language model has said of earlier ones.

        Returns:
            Whether more wait.
        """
        due = await self._store.batches_to_judge(_BATCH)
        for batch_id in due:
            await self.judge(batch_id)
        for asked in await self._store.asked_texts(_BATCH):
            if not await self._follow(asked):
                break  # batches are not to wait until every question has run into the same closed door
        return len(due) == _BATCH

    async def judge(self, batch_id: UUID) -> None:
        """Make the event of a batch; once more changes nothing."""
        facts = await self._store.batch_facts(batch_id)
        if facts is None:
            await self._store.skip_batch(batch_id)
            return
        risk, summary = self._rules.judge(facts), plain_summary(facts)
        draft = EventDraft(
            batch_id,
            facts,
            risk,
            summary,
            plain_reasoning(facts, risk),
            shown_facts(facts, risk, self._rules.profile),
            uuid5(batch_id, "summary") if self._model is not None else None,
            [self._alert(one.rule, facts, risk, summary) for one in self._rules.alerts(facts, risk)],
        )
        if await self._store.write_event(draft):
            _EVENTS.labels(risk.level.value).inc()
            _log.info("batch_judged", batch_id=str(batch_id), camera=facts.camera, score=risk.score)
            if draft.alerts:
                self._on_alerts()

    def _alert(self, name: str, facts: BatchFacts, risk: Risk, summary: str) -> NewAlert:
        rule = next(one for one in self._rules.alert if one.rule == name)
        message = rule.say(facts, risk, summary)
        url = rule.webhook_url or self._webhook_url
        return NewAlert(rule.rule, AlertGrade(rule.severity), message, rule.pause_seconds, url)

    async def _follow(self, asked: AskedText) -> bool:
        """Take what a language model has said; return whether the tasks service answers."""
        if self._model is None:
            await self._end(asked, "no language model is asked any more")
            return True
        try:
            answer = await self._looked(self._model, asked)
        except MeshError as error:
            if error.kind not in TRANSIENT:
                _log.warning("summary_refused", event_id=asked.event_id, reason=error.reason)
                await self._end(asked, "the tasks service takes no such task")
                return True
            if asked.age_seconds > self._answer_seconds:
                await self._end(asked, "no answer came in time")
            return False
        if answer is not None:
            await self._take(asked, answer)
        return True

    async def _looked(self, model: TextModel, asked: AskedText) -> ModelAnswer | None:
        try:
            answer = await model.look(asked.task_id)
        except MeshError as error:
            if error.kind is not ErrorKind.NOT_FOUND:
                raise
            facts = await self._store.batch_facts(asked.batch_id)
            if facts is None:
                return ModelAnswer("", "its photos are there no more")
            await model.ask(asked.task_id, SYSTEM, prompt(facts), f"event {asked.event_id}")
            return None
        if answer is None and asked.age_seconds > self._answer_seconds:
            await model.give_up(asked.task_id)
            return ModelAnswer("", "no answer came in time")
        return answer

    async def _take(self, asked: AskedText, answer: ModelAnswer) -> None:
        why: str | None = answer.problem or None
        if why is None:
            facts = await self._store.batch_facts(asked.batch_id)
            why = "its photos are there no more" if facts is None else refusal(answer.text, facts)
        if why is None:
            _TEXTS.labels("used").inc()
            await self._store.end_text(asked, answer.text.strip(), None)
        else:
            await self._end(asked, why)

    async def _end(self, asked: AskedText, why: str) -> None:
        _TEXTS.labels("unused").inc()
        _log.info("summary_unused", event_id=asked.event_id, why=why)
        await self._store.end_text(asked, None, why)


def shown_facts(facts: BatchFacts, risk: Risk, profile: str) -> dict[str, Any]:
    """Return what is shown of the facts that an event was judged by."""
    people = facts.people
    exposures = Counter(photo.exposure for photo in facts.photos if photo.exposure is not None)
    return {
        "photos": len(facts.photos),
        "people_most": max(people, default=None),
        "people_least": min(people, default=None),
        "photos_without_people": facts.empty,
        "photos_of_objects": facts.objects,
        "faces_most": facts.most_faces,
        "framing": dict(facts.framings),
        "view": dict(facts.views),
        "garment_colour": dict(facts.colours),
        "exposure": dict(exposures),
        "blurred": facts.blurred,
        "cut": facts.cut,
        "not_judged": facts.failed,
        "profile": profile,
        "rules": [
            {"rule": one.rule, "words": one.words, "photos": one.photos, "points": one.points} for one in risk.counts
        ],
        "summary_by": TextBy.FACTS.value,
        "model_text_unused": None,
    }


class EventDesk:
    """What callers ask of events.

    Args:
        store: The rows.
        access: Judges callers.
    """

    def __init__(self, store: EventStore, access: CaptureAccess) -> None:
        self._store = store
        self._access = access

    async def get(self, event_id: int) -> EventRecord:
        """Return an event.

        Raises:
            MeshError: There is none for this caller.
        """
        return _there(await self._store.find_event(event_id) if self._access.reads() else None, event_id)

    async def list_page(self, wanted: EventsWanted, page: PageWanted) -> PageFound[EventRecord]:
        """Return a page of events; an empty one for who may see none."""
        return await self._store.list_events(wanted, page) if self._access.reads() else PageFound((), 0)

    async def acknowledge(self, event_id: int) -> EventRecord:
        """Note that the caller has looked at an event; whoever was first stays.

        Raises:
            MeshError: There is none for this caller.
        """
        by = Caller.of_call().subject
        return _there(await self._store.review(event_id, by) if self._access.writes() else None, event_id)

    async def delete(self, event_id: int) -> None:
        """Delete an event.

        Raises:
            MeshError: There is none for this caller.
        """
        if not self._access.writes() or not await self._store.delete_event(event_id):
            raise event_not_found(event_id)


def _there(found: EventRecord | None, event_id: int) -> EventRecord:
    if found is None:
        raise event_not_found(event_id)
    return found
