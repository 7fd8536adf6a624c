"""What the dashboards of `ops/grafana/` show; `make dashboards` writes them.

Queries name metrics of `docs/metrics.md` and the figures of `ops/prometheus/recording.yml`; tests hold them to that,
and have every metric stand on a panel or in a rule. Every alert names one of these dashboards.
"""

from __future__ import annotations

from scripts.dashboard_parts import (
    THIRD,
    WIDE,
    DashboardSpec,
    PanelSpec,
    figure,
    graph,
    mean,
    quantile,
    rate,
)
from scripts.dashboard_roles import ROLES

DASHBOARDS: tuple[DashboardSpec, ...] = (
    DashboardSpec(
        "atelier-overview",
        "Atelier / Overview",
        (
            (
                "Now",
                (
                    figure("Requests that fail", "atelier:http_faults:ratio_rate5m", "percentunit", 0.001),
                    figure("Tasks that begin late", "atelier:late_starts:ratio_rate5m", "percentunit", 0.05),
                    figure("Tasks that fail", "max(atelier:task_failures:ratio_rate15m)", "percentunit", 0.1),
                    figure("Processes down", "count(up == 0) or vector(0)", "short", 0),
                    figure("Waiting tasks", "sum(atelier:queue_depth:max)", "short", 10000),
                    figure(
                        "Slots in use", "sum(atelier_worker_slots_busy) / sum(atelier_worker_slots)", "percentunit", 1
                    ),
                ),
            ),
            (
                "Requests",
                (
                    graph("Requests by status", rate("atelier_http_requests_total", "status"), "{{status}}", "reqps"),
                    PanelSpec(
                        "Time of requests",
                        (
                            (quantile("atelier_http_request_seconds", share=0.5), "median"),
                            (quantile("atelier_http_request_seconds"), "95 %"),
                            (quantile("atelier_http_request_seconds", share=0.99), "99 %"),
                        ),
                        "s",
                        about="Exemplars lead to traces, where traces are exported.",
                    ),
                    graph(
                        "Slowest routes, 95 %",
                        f"topk(10, {quantile('atelier_http_request_seconds', 'route')})",
                        "{{route}}",
                        "s",
                    ),
                    graph("Open connections", "atelier_http_connections", "{{instance}}"),
                ),
            ),
            (
                "Tasks",
                (
                    graph(
                        "Accepted, by type", rate("atelier_tasks_created_total", "task_type"), "{{task_type}}", "ops"
                    ),
                    graph("Ended, by outcome", rate("atelier_tasks_ended_total", "outcome"), "{{outcome}}", "ops"),
                    graph("Queue wait, 95 %", "atelier:queue_wait_seconds:p95_5m", "{{queue}}", "s"),
                    graph("Run, 95 %", "atelier:run_seconds:p95_5m", "{{task_type}}", "s"),
                ),
            ),
            (
                "Services",
                (
                    graph(
                        "gRPC calls, 95 %",
                        f"topk(10, {quantile('atelier_rpc_server_seconds', 'method')})",
                        "{{method}}",
                        "s",
                    ),
                    graph(
                        "gRPC calls that fail",
                        rate("atelier_rpc_server_seconds_count", "code", '{code!="OK"}'),
                        "{{code}}",
                        "reqps",
                    ),
                    graph("Calls in flight", "atelier_rpc_server_in_flight", "{{instance}}"),
                    graph("Creates in one message", mean("atelier_rpc_bundle_calls", "job"), "{{job}}"),
                    graph(
                        "Parts that work",
                        "max by (part) (atelier_mesh_part_healthy)",
                        "{{part}}",
                        about="1: it works, 0: it does not, as monitoring judges over time.",
                    ),
                    graph("Memory", "process_resident_memory_bytes", "{{job}} {{instance}}", "bytes"),
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
                    graph("Waiting tasks, by queue", "atelier:queue_depth:max", "{{queue}}"),
                    graph("Slots of workers, by queue", "atelier:queue_slots:max", "{{queue}}"),
                    graph(
                        "Waiting tasks, by lane",
                        "max by (queue, lane) (atelier_tasks_queue_depth)",
                        "{{queue}} {{lane}}",
                    ),
                    graph(
                        "Queue wait, by type, 95 %",
                        quantile("atelier_tasks_dispatch_seconds", "task_type"),
                        "{{task_type}}",
                        "s",
                    ),
                ),
            ),
            (
                "Rounds",
                (
                    graph("Leases", rate("atelier_tasks_leases_total", "queue"), "{{queue}}", "ops"),
                    graph(
                        "Rounds, by whether they found work",
                        rate("atelier_tasks_dispatch_rounds_total", "found"),
                        "found: {{found}}",
                        "ops",
                    ),
                    graph(
                        "Attempts without a result",
                        rate("atelier_tasks_attempts_lost_total", "task_type, status"),
                        "{{task_type}} {{status}}",
                        "ops",
                        about="PENDING: the task waits for its next attempt.",
                    ),
                    graph(
                        "Requests that share a transaction",
                        mean("atelier_tasks_group_commit_members", "kind"),
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
                    graph(
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
                    graph("Open sessions", "atelier_worker_session_open", "{{instance}}"),
                ),
            ),
            (
                "Attempts",
                (
                    graph(
                        "Time of an attempt, by type and model",
                        "atelier:attempt_seconds:mean_15m",
                        "{{task_type}} {{provider}} {{model}}",
                        "s",
                    ),
                    graph(
                        "Attempts, by outcome", rate("atelier_worker_attempts_total", "outcome"), "{{outcome}}", "ops"
                    ),
                    graph(
                        "Wait for a slot, 95 %",
                        quantile("atelier_worker_slot_wait_seconds", "task_type"),
                        "{{task_type}}",
                        "s",
                    ),
                    graph("Batch size", "atelier:batch_members:mean_15m", "{{task_type}}"),
                ),
            ),
            (
                "Models and children",
                (
                    graph("Memory of models", "atelier_worker_model_bytes", "{{instance}}", "bytes"),
                    graph("Models found in memory", "atelier:models_in_memory:ratio_rate15m", "found", "percentunit"),
                    graph(
                        "Models loaded",
                        rate("atelier_worker_model_loans_total", "model", '{resident="false"}'),
                        "{{model}}",
                        "ops",
                    ),
                    graph(
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
                    graph(
                        "Requests, by provider",
                        rate("atelier_provider_request_seconds_count", "provider"),
                        "{{provider}}",
                        "reqps",
                    ),
                    graph(
                        "Time of requests, 95 %",
                        quantile("atelier_provider_request_seconds", "provider"),
                        "{{provider}}",
                        "s",
                    ),
                    graph("Requests that fail", "atelier:provider_faults:ratio_rate15m", "{{provider}}", "percentunit"),
                    graph(
                        "How they fail",
                        rate("atelier_provider_request_seconds_count", "provider, outcome", '{outcome!="done"}'),
                        "{{provider}} {{outcome}}",
                        "reqps",
                    ),
                    graph(
                        "Breakers that are not closed",
                        'max by (provider, state) (atelier_tasks_provider_breakers{state!="closed"})',
                        "{{provider}} {{state}}",
                    ),
                    graph(
                        "Rounds that passed waiting work over",
                        rate("atelier_tasks_provider_refusals_total", "provider, gate"),
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
                    graph("Accepted", "sum(increase(atelier_trainings_created_total[1h]))", "within an hour"),
                    graph(
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
                    graph("Queue wait, 95 %", 'atelier:queue_wait_seconds:p95_5m{queue="training"}', "wait", "s"),
                    graph("Objects swept", rate("atelier_trainings_objects_swept_total"), "objects", "ops"),
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
                    graph(
                        "Oldest event that waits",
                        "max by (schema) (atelier_outbox_oldest_unpublished_seconds)",
                        "{{schema}}",
                        "s",
                    ),
                    graph(
                        "From the change to NATS, 95 %",
                        quantile("atelier_outbox_lag_seconds", "schema"),
                        "{{schema}}",
                        "s",
                    ),
                    graph(
                        "From NATS to the consumer, 95 %",
                        quantile("atelier_event_lag_seconds", "consumer"),
                        "{{consumer}}",
                        "s",
                    ),
                    graph("Events published", rate("atelier_outbox_published_total", "schema"), "{{schema}}", "ops"),
                ),
            ),
            (
                "Webhooks and workflows",
                (
                    graph(
                        "Requests to receivers",
                        rate("atelier_tasks_webhook_attempts_total", "outcome"),
                        "{{outcome}}",
                        "reqps",
                    ),
                    graph(
                        "Webhooks that ended",
                        rate("atelier_tasks_webhooks_ended_total", "outcome"),
                        "{{outcome}}",
                        "ops",
                    ),
                    graph("Workflows accepted", rate("atelier_workflows_created_total"), "workflows", "ops"),
                    graph("Workflows in one transaction", mean("atelier_workflow_group_members", "job"), "{{job}}"),
                    graph("Workflows that ended", rate("atelier_workflows_ended_total", "status"), "{{status}}", "ops"),
                    graph(
                        "Steps asked for",
                        rate("atelier_workflow_steps_dispatched_total", "outcome"),
                        "{{outcome}}",
                        "ops",
                    ),
                ),
            ),
            (
                "Loops",
                (
                    graph(
                        "Since the last success",
                        "topk(10, time() - atelier_loop_last_success_timestamp_seconds > 0)",
                        "{{loop}} {{instance}}",
                        "s",
                    ),
                    graph(
                        "Runs that failed",
                        rate("atelier_loop_runs_total", "loop", '{outcome="failed"}'),
                        "{{loop}}",
                        "ops",
                    ),
                    graph("Restarts", rate("atelier_loop_restarts_total", "loop"), "{{loop}}", "ops"),
                    graph(
                        "Time of a run, 95 %",
                        f"topk(10, {quantile('atelier_loop_run_seconds', 'loop')})",
                        "{{loop}}",
                        "s",
                    ),
                ),
            ),
            (
                "Live events",
                (
                    graph("Clients that listen", "sum by (route) (atelier_live_clients)", "{{route}}"),
                    graph(
                        "Conversations that ended",
                        rate("atelier_live_clients_ended_total", "cause"),
                        "{{cause}}",
                        "ops",
                    ),
                ),
            ),
            (
                "Traces and logs",
                (
                    graph("Spans that wait", "atelier_trace_spans_waiting", "{{job}} {{instance}}"),
                    PanelSpec(
                        "Spans exported",
                        ((rate("atelier_trace_spans_exported_total", "job"), "{{job}}"),),
                        "ops",
                        THIRD,
                    ),
                    PanelSpec(
                        "Spans dropped",
                        ((rate("atelier_trace_spans_dropped_total", "job, cause"), "{{job}} {{cause}}"),),
                        "ops",
                        THIRD,
                    ),
                    PanelSpec(
                        "Log lines dropped",
                        ((rate("atelier_log_lines_dropped_total", "job"), "{{job}}"),),
                        "ops",
                        THIRD,
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
                        ((f"topk(15, {rate('atelier_worker_tenant_device_seconds_total', 'tenant')})", "{{tenant}}"),),
                        "percentunit",
                        WIDE,
                        about="The first hundred tenants of each worker; exact sums by day are rows of the usage.",
                    ),
                    graph(
                        "Device seconds a second, by type",
                        rate("atelier_worker_device_seconds_total", "task_type"),
                        "{{task_type}}",
                        "percentunit",
                    ),
                    graph(
                        "Requests refused by a limit",
                        rate("atelier_quota_refusals_total", "limit"),
                        "{{limit}}",
                        "reqps",
                    ),
                    graph(
                        "Connections closed",
                        rate("atelier_http_connections_closed_total", "cause"),
                        "{{cause}}",
                        "ops",
                    ),
                ),
            ),
            (
                "What is deleted",
                (
                    graph(
                        "Rows, because of their age", rate("atelier_retention_pruned_total", "kind"), "{{kind}}", "ops"
                    ),
                    graph(
                        "Files of tasks that nothing names", rate("atelier_tasks_objects_swept_total"), "files", "ops"
                    ),
                ),
            ),
            (
                "Pictures from callers",
                (
                    PanelSpec(
                        "Judged",
                        ((rate("atelier_image_checks_total", "size, outcome"), "{{size}} {{outcome}}"),),
                        "ops",
                        THIRD,
                    ),
                    PanelSpec("Waiting", (("atelier_image_checks_waiting", "{{job}} {{instance}}"),), width=THIRD),
                    PanelSpec(
                        "Children lost to them",
                        ((rate("atelier_image_child_losses_total", "cause"), "{{cause}}"),),
                        "ops",
                        THIRD,
                    ),
                ),
            ),
        ),
    ),
    *ROLES,
)


def panels() -> list[PanelSpec]:
    """Return every panel."""
    return [panel for spec in DASHBOARDS for _, row in spec.rows for panel in row]


def runnable(query: str) -> str:
    """Return a query with an interval in place of Grafana's variable."""
    return query.replace("$__rate_interval", "5m")
