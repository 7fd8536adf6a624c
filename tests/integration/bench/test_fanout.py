"""The benchmark of live events, with few clients."""

from pathlib import Path

from bench import fanout


def test_every_event_is_timed_at_every_client(tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    found = fanout.measure(tmp_path, clients=3, events=2)
    assert len(found.taken) == 6
    assert 0 < min(found.taken) <= found.p99 <= max(found.taken)
    assert found.row(3).startswith("| 3 clients | ")
