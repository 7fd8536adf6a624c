"""Dashboards of what not every mesh has: autoscaling on Kubernetes, cameras, the judging of pictures."""

from __future__ import annotations

from scripts.dashboard_parts import DashboardSpec, PanelSpec, graph, quantile, rate

ROLES: tuple[DashboardSpec, ...] = (
    DashboardSpec(
        "atelier-autoscaling",
        "Atelier / Autoscaling",
        (
            (
                "Slots",
                (
                    PanelSpec(
                        "Slots that are wanted and there",
                        (
                            ("max by (queue) (atelier_tasks_slots_wanted)", "{{queue}} wanted"),
                            ("max by (queue) (atelier_tasks_slots_reported)", "{{queue}} told to the autoscaler"),
                            ("atelier:queue_slots:max", "{{queue}} there"),
                        ),
                        about="What is told counts cordoned workers until they are gone.",
                    ),
                    graph("Workers that are cordoned", "max by (queue) (atelier_tasks_workers_cordoned)", "{{queue}}"),
                    graph("Cordons", rate("atelier_tasks_cordons_total", "change"), "{{change}}", "ops"),
                ),
            ),
            (
                "KEDA and the marker",
                (
                    graph(
                        "Looks at the scheduler, by outcome",
                        rate("atelier_scaler_reads_total", "outcome"),
                        "{{outcome}}",
                        "ops",
                        about="While they fail, KEDA keeps the last count of pods.",
                    ),
                    graph("Streams that KEDA watches", "atelier_scaler_watchers", "{{instance}}"),
                    graph("Pods that bear a mark", "atelier_marker_pods_marked", "{{instance}}"),
                    graph(
                        "Changes of marks",
                        rate("atelier_marker_patches_total", "change, outcome"),
                        "{{change}} {{outcome}}",
                        "ops",
                    ),
                ),
            ),
        ),
    ),
    DashboardSpec(
        "atelier-capture",
        "Atelier / Capture and evaluation",
        (
            (
                "Capture",
                (
                    graph("Cameras, by state", "max by (status) (atelier_capture_cameras)", "{{status}}"),
                    graph(
                        "Photos that were looked at",
                        rate("atelier_capture_photos_total", "outcome"),
                        "{{outcome}}",
                        "ops",
                    ),
                    graph("Events, by level", rate("atelier_capture_events_total", "level"), "{{level}}", "ops"),
                    graph(
                        "Summaries by a language model",
                        rate("atelier_capture_model_texts_total", "outcome"),
                        "{{outcome}}",
                        "ops",
                    ),
                    graph(
                        "Forgotten because of age", rate("atelier_capture_forgotten_total", "kind"), "{{kind}}", "ops"
                    ),
                ),
            ),
            (
                "Evaluation",
                (
                    graph(
                        "Pictures that were judged",
                        rate("atelier_evaluations_total", "provider, outcome"),
                        "{{provider}} {{outcome}}",
                        "ops",
                    ),
                    graph(
                        "Time of a judgement, 95 %",
                        quantile("atelier_evaluation_seconds", "provider"),
                        "{{provider}}",
                        "s",
                    ),
                ),
            ),
        ),
    ),
)
