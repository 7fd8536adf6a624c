"""The benchmark of dispatch, with few workers."""

from pathlib import Path

from bench.dispatch import DispatchCase, DispatchFigures, DispatchStack


def test_what_waits_is_leased_and_what_is_created_is_timed(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    with DispatchStack(tmp_path) as stack:
        waiting = stack.measure(DispatchCase(replicas=2, workers=3, slots=2, rate=0, seconds=0.5))
        created = stack.measure(DispatchCase(replicas=1, workers=3, slots=1, rate=20, seconds=0.5))
    assert waiting.completed > 0
    assert waiting.left > 0
    assert waiting.cores["tasks"] > 0
    assert min(waiting.memory.values()) > 0
    assert created.lost == 0
    assert created.left < waiting.left, "what is created is leased, if not all of it at the end on a busy machine"
    assert 0 < created.sent_p50 <= created.sent_p99
    assert created.answered_p50 < created.sent_p50
    assert waiting.errors == created.errors == 0


def test_a_process_of_one_thread_that_has_nothing_left_is_named_as_the_limit() -> None:
    cores = {"postgres": 0.1, "tasks": 0.95, "workers": 0.1, "nats": 0.0}
    assert DispatchFigures(1, 1, cores, {}).limit(1).startswith("tasks")
    assert DispatchFigures(1, 1, cores, {}).limit(2) == "the workers' round trips"
    assert "the simulation" in DispatchFigures(1, 1, {**cores, "workers": 0.9}, {}).limit(2)
