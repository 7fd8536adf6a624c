"""What a replica that stands still holds is another's within ten seconds: the sum of what has to run out first."""

from meshkit import bus, channel, db, health, leadership, pipeline
from services.tasks.webhooks import domain, sender
from services.workflows.config import WorkflowsSettings

LIMIT_SECONDS = 10.0
# A loop's interval varies by a fifth.
JITTER = 1.2


def options() -> dict[str, str]:
    words = str(db.connection_options("tasks", 30, "test")["options"]).split("-c ")
    return dict(word.strip().split("=", 1) for word in words if word.strip())


def test_its_transactions_end() -> None:
    assert int(options()["idle_in_transaction_session_timeout"]) < LIMIT_SECONDS * 1000
    assert int(options()["tcp_user_timeout"]) < LIMIT_SECONDS * 1000, "one that takes no answer either"
    [seconds] = [word for word in pipeline._END_STANDSTILL.split("'") if word.endswith("s")]
    assert float(seconds.removesuffix("s")) < LIMIT_SECONDS


def test_its_leadership_passes_on() -> None:
    assert leadership.LEADER_SECONDS + leadership._ASK_SECONDS < LIMIT_SECONDS


def test_its_webhooks_are_sent_by_another() -> None:
    assert domain.LEASE.total_seconds() + sender.INTERVAL_SECONDS * JITTER < LIMIT_SECONDS


def test_its_events_are_handled_by_another() -> None:
    assert bus.FETCH_TIMEOUT_SECONDS + bus.ACK_WAIT_SECONDS < LIMIT_SECONDS


def test_its_workflows_are_moved_by_another() -> None:
    fields = WorkflowsSettings.model_fields
    resend, interval = fields["resend_seconds"].default, fields["reconcile_interval_seconds"].default
    assert resend + interval * JITTER < LIMIT_SECONDS


def test_its_calls_go_to_another_in_time_for_what_follows_them() -> None:
    assert sum(channel._SPREAD_KEEPALIVE_MS) + 2000 < LIMIT_SECONDS * 1000


def test_calls_at_a_replica_that_is_cut_off_are_ended() -> None:
    certain = health._LOST_FAILURES * health._CHECK_SECONDS + (health._LOST_FAILURES - 1) * health._AGAIN_SECONDS
    assert health._WATCH_SECONDS + health._KEPT_SECONDS + certain < LIMIT_SECONDS
