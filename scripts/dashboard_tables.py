"""What the dashboards of `ops/grafana/` show; `make dashboards` writes them.

Queries name metrics of `docs/metrics.md` and the figures of `ops/prometheus/recording.yml`; tests hold them to that.
Every alert names one of these dashboards.
"""

from __future__ import annotations

from dataclasses import dataclass

_WIDE, _HALF, _THIRD, _SIXTH = 24, 12, 8, 4


@dataclass(frozen=True, slots=True)
class PanelSpec:
    """A panel.

    Attributes:
        title: What it shows.
        queries: PromQL and the legend of its series.
        unit: Grafana's name of the unit.
        width: Of 24.
        bad_above: A single figure is red above it; None draws a graph.
        about: What to read from it.
    """

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    width: int = _HALF
    bad_above: float | None = None
    about: str = ""


@dataclass(frozen=True, slots=True)
class DashboardSpec:
    """A dashboard.

    Attributes:
        uid: Its fixed identifier, and the name of its file.
        title: Its title.
        rows: Titles of rows, each with its panels.
    """

    uid: str
    title: str
    rows: tuple[tuple[str, tuple[PanelSpec, ...]], ...]


def _rate(metric: str, by: str = "", where: str = "") -> str:
    inner = f"rate({metric}{where}[$__rate_interval])"
    return f"sum by ({by}) ({inner})" if by else f"sum({inner})"


def _quantile(metric: str, by: str = "", quantile: float = 0.95) -> str:
    labels = f"{by}, le" if by else "le"
    return f"histogram_quantile({quantile}, sum by ({labels}) (rate({metric}_bucket[$__rate_interval])))"


def _mean(metric: str, by: str) -> str:
    return f"{_rate(f'{metric}_sum', by)} / {_rate(f'{metric}_count', by)}"


def _graph(title: str, query: str, legend: str, unit: str = "short", about: str = "") -> PanelSpec:
    return PanelSpec(title, ((query, legend),), unit, about=about)


def _figure(title: str, query: str, unit: str, bad_above: float, about: str = "") -> PanelSpec:
    return PanelSpec(title, ((query, ""),), unit, _SIXTH, bad_above, about)


DASHBOARDS: tuple[DashboardSpec, ...] = (
    DashboardSpec(
        "atelier-overview",
        "Atelier / Overview",
        (
            (
                "Now",
                (
                    _figure("Requests that fail", "atelier:http_faults:ratio_rate5m", "percentunit", 0.001),
                    _figure("Tasks that begin late", "atelier:late_starts:ratio_rate5m", "percentunit", 0.05),
                    _figure("Tasks that fail", "max(atelier:task_failures:ratio_rate15m)", "percentunit", 0.1),
                    _figure("Processes down", "count(up == 0) or vector(0)", "short", 0),
                    _figure("Waiting tasks", "sum(atelier:queue_depth:max)", "short", 10000),
                    _figure(
                        "Slots in use", "sum(atelier_worker_slots_busy) / sum(atelier_worker_slots)", "percentunit", 1
                    ),
                ),
            ),
            (
                "Requests",
                (
                    _graph("Requests by status", _rate("atelier_http_requests_total", "status"), "{{status}}", "reqps"),
                    PanelSpec(
                        "Time of requests",
                        (
                            (_quantile("atelier_http_request_seconds", quantile=0.5), "median"),
                            (_quantile("atelier_http_request_seconds"), "95 %"),
                            (_quantile("atelier_http_request_seconds", quantile=0.99), "99 %"),
                        ),
                        "s",
                        about="Exemplars lead to traces, where traces are exported.",
                    ),
                    _graph(
                        "Slowest routes, 95 %",
                        f"topk(10, {_quantile('atelier_http_request_seconds', 'route')})",
                        "{{route}}",
                        "s",
                    ),
                    _graph("Open connections", "atelier_http_connections", "{{instance}}"),
                ),
            ),
            (
                "Tasks",
                (
                    _graph(
                        "Accepted, by type", _rate("atelier_tasks_created_total", "task_type"), "{{task_type}}", "ops"
                    ),
                    _graph("Ended, by outcome", _rate("atelier_tasks_ended_total", "outcome"), "{{outcome}}", "ops"),
                    _graph("Queue wait, 95 %", "atelier:queue_wait_seconds:p95_5m", "{{queue}}", "s"),
                    _graph("Run, 95 %", "atelier:run_seconds:p95_5m", "{{task_type}}", "s"),
                ),
            ),
            (
                "Services",
                (
                    _graph(
                        "gRPC calls, 95 %",
                        f"topk(10, {_quantile('atelier_rpc_server_seconds', 'method')})",
                        "{{method}}",
                        "s",
                    ),
                    _graph(
                        "gRPC calls that fail",
                        _rate("atelier_rpc_server_seconds_count", "code", '{code!="OK"}'),
                        "{{code}}",
                        "reqps",
                    ),
                    _graph("Calls in flight", "atelier_rpc_server_in_flight", "{{instance}}"),
                    _graph("Memory", "process_resident_memory_bytes", "{{job}} {{instance}}", "bytes"),
                ),
            ),
        ),
    ),
    DashboardSpec(
        "atelier-scheduler",
        "Atelier / Scheduler",
        (
            (
                "Work and slots",
                (
                    _graph("Waiting tasks, by queue", "atelier:queue_depth:max", "{{queue}}"),
                    _graph("Slots of workers, by queue", "atelier:queue_slots:max", "{{queue}}"),
                    _graph(
                        "Waiting tasks, by lane",
                        "max by (queue, lane) (atelier_tasks_queue_depth)",
                        "{{queue}} {{lane}}",
                    ),
                    _graph(
                        "Queue wait, by type, 95 %",
                        _quantile("atelier_tasks_dispatch_seconds", "task_type"),
                        "{{task_type}}",
                        "s",
                    ),
                ),
            ),
            (
                "Rounds",
                (
                    _graph("Leases", _rate("atelier_tasks_leases_total", "queue"), "{{queue}}", "ops"),
                    _graph(
                        "Rounds, by whether they found work",
                        _rate("atelier_tasks_dispatch_rounds_total", "found"),
                        "found: {{found}}",
                        "ops",
                    ),
                    _graph(
                        "Attempts without a result",
                        _rate("atelier_tasks_attempts_lost_total", "task_type, status"),
                        "{{task_type}} {{status}}",
                        "ops",
                        about="PENDING: the task waits for its next attempt.",
                    ),
                    _graph(
                        "Requests that share a transaction",
                        _mean("atelier_tasks_group_commit_members", "kind"),
                        "{{kind}}",
                    ),
                ),
            ),
        ),
    ),
    DashboardSpec(
        "atelier-workers",
        "Atelier / Workers",
        (
            (
                "Load",
                (
                    PanelSpec(
                        "Slots in use",
                        (("atelier_worker_slots_busy", "{{instance}}"), ("atelier_worker_slots", "{{instance}} of")),
                    ),
                    _graph(
                        "Device use",
                        "atelier:device_use:ratio_rate5m",
                        "{{instance}}",
                        "percentunit",
                        about="Device seconds a second.",
                    ),
                    PanelSpec(
                        "Attempts held and fetching",
                        (
                            ("atelier_worker_attempts_held", "{{instance}} held"),
                            ("atelier_worker_fetching", "{{instance}} fetching"),
                        ),
                    ),
                    _graph("Open sessions", "atelier_worker_session_open", "{{instance}}"),
                ),
            ),
            (
                "Attempts",
                (
                    _graph(
                        "Time of an attempt, by type and model",
                        "atelier:attempt_seconds:mean_15m",
                        "{{task_type}} {{provider}} {{model}}",
                        "s",
                    ),
                    _graph(
                        "Attempts, by outcome", _rate("atelier_worker_attempts_total", "outcome"), "{{outcome}}", "ops"
                    ),
                    _graph(
                        "Wait for a slot, 95 %",
                        _quantile("atelier_worker_slot_wait_seconds", "task_type"),
                        "{{task_type}}",
                        "s",
                    ),
                    _graph("Batch size", "atelier:batch_members:mean_15m", "{{task_type}}"),
                ),
            ),
            (
                "Models and children",
                (
                    _graph("Memory of models", "atelier_worker_model_bytes", "{{instance}}", "bytes"),
                    _graph("Models found in memory", "atelier:models_in_memory:ratio_rate15m", "found", "percentunit"),
                    _graph(
                        "Models loaded",
                        _rate("atelier_worker_model_loans_total", "model", '{resident="false"}'),
                        "{{model}}",
                        "ops",
                    ),
                    _graph(
                        "Children lost",
                        "sum by (instance, cause) (increase(atelier_worker_child_losses_total[1h]))",
                        "{{instance}} {{cause}}",
                    ),
                ),
            ),
        ),
    ),
    DashboardSpec(
        "atelier-providers",
        "Atelier / Providers",
        (
            (
                "Providers",
                (
                    _graph(
                        "Requests, by provider",
                        _rate("atelier_provider_request_seconds_count", "provider"),
                        "{{provider}}",
                        "reqps",
                    ),
                    _graph(
                        "Time of requests, 95 %",
                        _quantile("atelier_provider_request_seconds", "provider"),
                        "{{provider}}",
                        "s",
                    ),
                    _graph(
                        "Requests that fail", "atelier:provider_faults:ratio_rate15m", "{{provider}}", "percentunit"
                    ),
                    _graph(
                        "How they fail",
                        _rate("atelier_provider_request_seconds_count", "provider, outcome", '{outcome!="done"}'),
                        "{{provider}} {{outcome}}",
                        "reqps",
                    ),
                    _graph(
                        "Breakers that are not closed",
                        'max by (provider, state) (atelier_tasks_provider_breakers{state!="closed"})',
                        "{{provider}} {{state}}",
                    ),
                    _graph(
                        "Rounds that passed waiting work over",
                        _rate("atelier_tasks_provider_refusals_total", "provider, gate"),
                        "{{provider}} {{gate}}",
                        "ops",
                        about="limit: a rate that the installation sets; breaker: the provider answers with errors.",
                    ),
                ),
            ),
        ),
    ),
    DashboardSpec(
        "atelier-training",
        "Atelier / Training",
        (
            (
                "Trainings",
                (
                    _graph("Accepted", "sum(increase(atelier_trainings_created_total[1h]))", "within an hour"),
                    _graph(
                        "Ended, by outcome",
                        "sum by (outcome) (increase(atelier_trainings_ended_total[1h]))",
                        "{{outcome}}",
                    ),
                    PanelSpec(
                        "Waiting",
                        (
                            ('atelier:queue_depth:max{queue="training"}', "waiting"),
                            ('atelier:queue_slots:max{queue="training"}', "slots"),
                        ),
                    ),
                    _graph("Queue wait, 95 %", 'atelier:queue_wait_seconds:p95_5m{queue="training"}', "wait", "s"),
                    _graph("Objects swept", _rate("atelier_trainings_objects_swept_total"), "objects", "ops"),
                ),
            ),
        ),
    ),
    DashboardSpec(
        "atelier-events",
        "Atelier / Events, webhooks and loops",
        (
            (
                "Events",
                (
                    _graph(
                        "Oldest event that waits",
                        "max by (schema) (atelier_outbox_oldest_unpublished_seconds)",
                        "{{schema}}",
                        "s",
                    ),
                    _graph(
                        "From the change to NATS, 95 %",
                        _quantile("atelier_outbox_lag_seconds", "schema"),
                        "{{schema}}",
                        "s",
                    ),
                    _graph(
                        "From NATS to the consumer, 95 %",
                        _quantile("atelier_event_lag_seconds", "consumer"),
                        "{{consumer}}",
                        "s",
                    ),
                    _graph("Events published", _rate("atelier_outbox_published_total", "schema"), "{{schema}}", "ops"),
                ),
            ),
            (
                "Webhooks and workflows",
                (
                    _graph(
                        "Requests to receivers",
                        _rate("atelier_tasks_webhook_attempts_total", "outcome"),
                        "{{outcome}}",
                        "reqps",
                    ),
                    _graph(
                        "Webhooks that ended",
                        _rate("atelier_tasks_webhooks_ended_total", "outcome"),
                        "{{outcome}}",
                        "ops",
                    ),
                    _graph(
                        "Workflows that ended", _rate("atelier_workflows_ended_total", "status"), "{{status}}", "ops"
                    ),
                    _graph(
                        "Steps asked for",
                        _rate("atelier_workflow_steps_dispatched_total", "outcome"),
                        "{{outcome}}",
                        "ops",
                    ),
                ),
            ),
            (
                "Loops",
                (
                    _graph(
                        "Since the last success",
                        "topk(10, time() - atelier_loop_last_success_timestamp_seconds > 0)",
                        "{{loop}} {{instance}}",
                        "s",
                    ),
                    _graph(
                        "Runs that failed",
                        _rate("atelier_loop_runs_total", "loop", '{outcome="failed"}'),
                        "{{loop}}",
                        "ops",
                    ),
                    _graph(
                        "Time of a run, 95 %",
                        f"topk(10, {_quantile('atelier_loop_run_seconds', 'loop')})",
                        "{{loop}}",
                        "s",
                    ),
                ),
            ),
            (
                "Traces and logs",
                (
                    PanelSpec(
                        "Spans exported",
                        ((_rate("atelier_trace_spans_exported_total", "job"), "{{job}}"),),
                        "ops",
                        _THIRD,
                    ),
                    PanelSpec(
                        "Spans dropped",
                        ((_rate("atelier_trace_spans_dropped_total", "job, cause"), "{{job}} {{cause}}"),),
                        "ops",
                        _THIRD,
                    ),
                    PanelSpec(
                        "Log lines dropped",
                        ((_rate("atelier_log_lines_dropped_total", "job"), "{{job}}"),),
                        "ops",
                        _THIRD,
                    ),
                ),
            ),
        ),
    ),
    DashboardSpec(
        "atelier-tenants",
        "Atelier / Tenants and limits",
        (
            (
                "Tenants",
                (
                    PanelSpec(
                        "Device seconds a second, by tenant",
                        ((f"topk(15, {_rate('atelier_worker_tenant_device_seconds_total', 'tenant')})", "{{tenant}}"),),
                        "percentunit",
                        _WIDE,
                        about="The first hundred tenants of each worker; exact sums by day are rows of the usage.",
                    ),
                    _graph(
                        "Device seconds a second, by type",
                        _rate("atelier_worker_device_seconds_total", "task_type"),
                        "{{task_type}}",
                        "percentunit",
                    ),
                    _graph(
                        "Requests refused by a limit",
                        _rate("atelier_quota_refusals_total", "limit"),
                        "{{limit}}",
                        "reqps",
                    ),
                    _graph(
                        "Connections closed",
                        _rate("atelier_http_connections_closed_total", "cause"),
                        "{{cause}}",
                        "ops",
                    ),
                ),
            ),
            (
                "Pictures from callers",
                (
                    PanelSpec(
                        "Judged",
                        ((_rate("atelier_image_checks_total", "size, outcome"), "{{size}} {{outcome}}"),),
                        "ops",
                        _THIRD,
                    ),
                    PanelSpec("Waiting", (("atelier_image_checks_waiting", "{{job}} {{instance}}"),), width=_THIRD),
                    PanelSpec(
                        "Children lost to them",
                        ((_rate("atelier_image_child_losses_total", "cause"), "{{cause}}"),),
                        "ops",
                        _THIRD,
                    ),
                ),
            ),
        ),
    ),
)


def panels() -> list[PanelSpec]:
    """Return every panel."""
    return [panel for spec in DASHBOARDS for _, row in spec.rows for panel in row]


def runnable(query: str) -> str:
    """Return a query with an interval in place of Grafana's variable."""
    return query.replace("$__rate_interval", "5m")
