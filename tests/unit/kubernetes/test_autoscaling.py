"""The component `autoscaling`: what KEDA, the scheduler and the marker name is one and the same."""

import json
import re
import zoneinfo

import pytest

from meshkit import topology
from meshkit.catalog import PROVIDERS
from meshkit.config import PREFIX
from meshkit.health import PROCESS
from scripts.settings_page import settings_of
from services.inference.config import InferenceSettings
from services.monitoring.marker.config import MarkerSettings
from services.monitoring.scaler.answers import ScaledUnit, Trigger, trigger_of
from services.tasks.config import TasksSettings
from services.training.trainer.config import QUEUE, TrainerSettings
from tests.unit.kubernetes.manifests import (
    ROOT,
    Document,
    called,
    containers,
    environment,
    named,
    of_kind,
    overlay,
    pod,
    references,
    selects,
    with_components,
)
from tests.unit.kubernetes.test_network import Policies, labels_of
from tests.unit.kubernetes.test_schemas import RELEASES, errors, schemas

_IMAGE = "atelier/training"
_ADDED = ("Deployment/marker", "ServiceAccount/marker", "Service/monitoring-scaler")


def scaled() -> list[Document]:
    """The base with the component."""
    return with_components("autoscaling")


def scaled_on_gpus() -> list[Document]:
    """The base with the component and those that go before it, from a registry of its own."""
    return with_components("gpu", "model-cache", "autoscaling")


def trainer_job(documents: list[Document]) -> Document:
    """The Job that KEDA makes of the ScaledJob."""
    spec = named(documents, "ScaledJob", "trainer")["spec"]["jobTargetRef"]
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "trainer"}, "spec": spec}


def scaled_object() -> Document:
    return next(one for one in scaled() if one["kind"] == "ScaledObject")


@pytest.mark.parametrize("release", RELEASES)
def test_what_the_component_adds_and_changes_passes_the_schemas(release: str) -> None:
    read = schemas(release)
    changed = ("Deployment/inference", "Deployment/tasks", "Deployment/monitoring", *_ADDED)
    found = {called(one): errors(read, one) for one in scaled() if called(one) in changed}
    assert found == {name: [] for name in changed}
    assert errors(read, trainer_job(scaled())) == []
    assert errors(read, trainer_job(scaled_on_gpus())) == []


def test_the_trigger_is_one_that_the_scaler_takes_at_the_address_where_it_serves() -> None:
    [trigger] = scaled_object()["spec"]["triggers"]
    [of_jobs] = named(scaled(), "ScaledJob", "trainer")["spec"]["triggers"]
    assert trigger["type"] == of_jobs["type"] == "external-push"
    assert trigger_of(trigger["metadata"]).queue == "inference"
    assert trigger_of(of_jobs["metadata"]) == Trigger(QUEUE, 1, ScaledUnit.WAITING)
    assert of_jobs["metadata"]["scalerAddress"] == trigger["metadata"]["scalerAddress"]
    host, _, port = trigger["metadata"]["scalerAddress"].partition(":")
    service = named(scaled(), "Service", host.removesuffix(".atelier"))
    [offered] = service["spec"]["ports"]
    monitoring = named(scaled(), "Deployment", "monitoring")
    assert selects({"matchLabels": service["spec"]["selector"]}, labels_of(monitoring))
    listening = environment(scaled(), monitoring)["ATELIER_SCALER_LISTEN"]
    ports = {one["name"]: one["containerPort"] for one in containers(monitoring)[0]["ports"]}
    assert {f"0.0.0.0:{port}", f"0.0.0.0:{ports[offered['targetPort']]}"} == {listening}
    assert offered["port"] == int(port)


def test_what_is_scaled_is_a_deployment_without_a_number_whose_pods_the_marker_knows() -> None:
    target = named(scaled(), "Deployment", scaled_object()["spec"]["scaleTargetRef"]["name"])
    assert "replicas" not in target["spec"]
    [name] = [one for one in containers(target)[0]["env"] if one["name"] == "ATELIER_WORKER_NAME"]
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    key, _, value = MarkerSettings.model_fields["pod_selector"].default.partition("=")
    assert [called(one) for one in of_kind(scaled(), "Deployment") if labels_of(one).get(key) == value] == [
        "Deployment/inference"
    ]
    assert float(environment(scaled(), named(scaled(), "Deployment", "tasks"))["ATELIER_SCALE_IN_SECONDS"]) > 0


def test_a_job_for_each_training_that_waits_is_never_ended_from_outside() -> None:
    spec = named(scaled(), "ScaledJob", "trainer")["spec"]
    # Each is a member of KEDA's ScaledJob; what it does not know it passes over in silence.
    assert set(spec) == {
        *("pollingInterval", "maxReplicaCount", "successfulJobsHistoryLimit", "failedJobsHistoryLimit"),
        *("rollout", "scalingStrategy", "jobTargetRef", "triggers"),
    }
    assert spec["rollout"] == {"strategy": "gradual"}
    assert spec["scalingStrategy"] == {"strategy": "accurate", "pendingPodConditions": ["Ready"]}
    assert 0 < spec["successfulJobsHistoryLimit"] <= 5
    job = spec["jobTargetRef"]
    assert set(job) == {"parallelism", "completions", "backoffLimit", "template"}
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (1, 1, 0)
    assert job["template"]["spec"]["restartPolicy"] == "Never"


def test_the_job_s_pod_is_the_trainer_s_with_what_other_components_gave_it() -> None:
    made = with_components("gpu", "model-cache")
    expected = json.loads(json.dumps(named(made, "Deployment", "trainer")["spec"]["template"]))
    expected["spec"]["restartPolicy"] = "Never"
    expected["spec"]["containers"][0]["env"].append({"name": "ATELIER_TRAINER_ONE_JOB", "value": "true"})
    found = trainer_job(scaled_on_gpus())
    assert found["spec"]["template"] == expected
    [container] = containers(found)
    assert container["image"] == f"registry.example.com/{_IMAGE}:9"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    there = {(one["kind"], one["metadata"]["name"]) for one in scaled_on_gpus()}
    there |= {("Secret", name) for name in ("nats", "objects", "tokens")}
    assert {(kind, name) for _, kind, name in references([found])} <= there


def test_a_trainer_is_a_job_alone_and_takes_what_it_finds_there_before_it_gives_up() -> None:
    assert "trainer" not in {one["metadata"]["name"] for one in of_kind(scaled(), "Deployment", "PodDisruptionBudget")}
    values = environment(scaled(), trainer_job(scaled()))
    assert {name.removesuffix("_FILE") for name in values} <= {
        f"{PREFIX}{name.upper()}" for name in TrainerSettings.model_fields
    }
    waits = TrainerSettings.model_fields["trainer_one_job_wait_seconds"].default
    assert waits > TasksSettings.model_fields["scale_settle_seconds"].default, "a new worker gets no lease before"
    grace = pod(trainer_job(scaled()))["terminationGracePeriodSeconds"]
    assert grace > float(values["ATELIER_SHUTDOWN_GRACE_SECONDS"])
    policies = Policies(scaled())
    labels = named(scaled(), "ScaledJob", "trainer")["spec"]["jobTargetRef"]["template"]["metadata"]["labels"]
    for name, port in (("tasks", 9101), ("training", 9103)):
        to = labels_of(named(scaled(), "Deployment", name))
        assert policies.allows("Egress", labels, to, port)
        assert policies.allows("Ingress", to, labels, port)


def test_the_marker_may_do_three_things_to_pods_and_is_the_only_one_with_a_token_of_the_cluster() -> None:
    [role] = of_kind(scaled(), "Role")
    assert role["rules"] == [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch", "patch"]}]
    [binding] = of_kind(scaled(), "RoleBinding")
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "marker", "namespace": "atelier"}]
    assert of_kind(scaled(), "ClusterRole", "ClusterRoleBinding") == []
    holding = [called(one) for one in of_kind(scaled(), "Deployment") if pod(one)["automountServiceAccountToken"]]
    assert holding == ["Deployment/marker"]


def test_the_marker_keeps_to_the_restricted_profile_and_reads_what_it_is_given() -> None:
    marker = named(scaled(), "Deployment", "marker")
    [container] = pod(marker)["containers"]
    assert pod(marker)["securityContext"]["runAsNonRoot"] is True
    assert pod(marker)["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["args"] == ["python", "-m", topology.MARKER.module]
    assert marker["spec"]["strategy"] == {"type": "Recreate"}
    assert marker["spec"]["replicas"] == 1
    values = environment(scaled(), marker)
    known = {f"{PREFIX}{name.upper()}" for name in settings_of(topology.MARKER).model_fields}
    assert {name.removesuffix("_FILE") for name in values} <= known
    assert container["livenessProbe"]["grpc"] == {"port": 9107, "service": PROCESS}
    assert values["ATELIER_LISTEN"] == "0.0.0.0:9107"
    there = {(one["kind"], one["metadata"]["name"]) for one in scaled()} | {("Secret", "tokens")}
    assert {found[1:] for found in references(scaled()) if found[0] == "Deployment/marker"} <= there


def test_the_marker_reaches_tasks_and_the_api_server_alone_and_only_keda_reaches_the_scaler() -> None:
    policies = Policies(scaled())
    deployments = {one["metadata"]["name"]: labels_of(one) for one in of_kind(scaled(), "Deployment")}
    for name, labels in deployments.items():
        reached = policies.allows("Egress", deployments["marker"], labels, 9101)
        assert (reached and policies.allows("Ingress", labels, deployments["marker"], 9101)) == (name == "tasks")
        assert not policies.allows("Ingress", deployments["monitoring"], labels, 9106), name
    assert set(policies.networks(deployments["marker"], 6443)) == {"0.0.0.0/0"}
    policy = named(scaled(), "NetworkPolicy", "keda-to-scaler")["spec"]
    [peer] = policy["ingress"][0]["from"]
    assert peer == {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "keda"}}}


def test_workers_of_providers_are_scaled_by_every_queue_that_they_take_from() -> None:
    documents = with_components("autoscaling", "autoscaling-providers")
    target = named(documents, "Deployment", "providers")
    scaling = named(documents, "ScaledObject", "providers")["spec"]
    assert scaling["scaleTargetRef"] == {"name": "providers"}
    assert "replicas" not in target["spec"]
    settings = environment(documents, target)
    queues = {PROVIDERS[name].queue for name in settings["ATELIER_WORKER_PROVIDERS"].split(",")}
    found = [trigger_of(trigger["metadata"]) for trigger in scaling["triggers"]]
    assert {one.queue for one in found} == queues
    slots = InferenceSettings.model_fields["worker_calls"].default
    assert {(one.slots, one.unit) for one in found} == {(slots, ScaledUnit.SECONDS)}
    address = scaled_object()["spec"]["triggers"][0]["metadata"]["scalerAddress"]
    assert {one["metadata"]["scalerAddress"] for one in scaling["triggers"]} == {address}
    key, _, value = MarkerSettings.model_fields["pod_selector"].default.partition("=")
    assert labels_of(target)[key] == value
    [name] = [one for one in containers(target)[0]["env"] if one["name"] == "ATELIER_WORKER_NAME"]
    assert name["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"


def test_hours_of_work_are_a_trigger_beside_the_scheduler_s() -> None:
    documents = with_components("autoscaling", "warm-hours")
    first, cron = named(documents, "ScaledObject", "inference")["spec"]["triggers"]
    assert first == scaled_object()["spec"]["triggers"][0]
    assert cron["type"] == "cron"
    hours = cron["metadata"]
    assert set(hours) == {"timezone", "start", "end", "desiredReplicas"}
    assert zoneinfo.ZoneInfo(hours["timezone"])
    assert all(len(hours[edge].split()) == 5 for edge in ("start", "end"))
    assert 0 < int(hours["desiredReplicas"]) <= scaled_object()["spec"]["maxReplicaCount"]


def test_the_way_by_prometheus_reads_the_scheduler_s_own_number_and_settles_for_longer() -> None:
    documents = with_components("autoscaling", "autoscaling-prometheus")
    [trigger] = named(documents, "ScaledObject", "inference")["spec"]["triggers"]
    assert trigger["type"] == "prometheus"
    metadata = trigger["metadata"]
    [metric, queue] = re.findall(r"atelier_(\w+)\{queue=\"(\w+)\"\}", metadata["query"])[0]
    assert f"`atelier_{metric}`" in (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert queue == trigger_of(scaled_object()["spec"]["triggers"][0]["metadata"]).queue
    assert metadata["ignoreNullValues"] == "false", "what is not known is an error and never 0"
    told = environment(overlay("production"), named(overlay("production"), "Deployment", "monitoring"))
    assert metadata["serverAddress"] == told["ATELIER_PROMETHEUS_URL"]
    settle = float(environment(documents, named(documents, "Deployment", "tasks"))["ATELIER_SCALE_SETTLE_SECONDS"])
    assert settle > TasksSettings.model_fields["scale_settle_seconds"].default
    waits = environment(documents, trainer_job(documents))["ATELIER_TRAINER_ONE_JOB_WAIT_SECONDS"]
    assert float(waits) > settle, "a new worker gets no lease before"
