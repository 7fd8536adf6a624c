"""The application that a task names, in one place or in two, and calls that no caller may name."""

from typing import Any

import pytest
from atelier.tasks.v1 import providers_pb2, task_pb2
from google.protobuf.struct_pb2 import Struct

from meshkit.catalog import PROVIDERS, TASK_TYPES
from meshkit.errors import MeshError
from meshkit.validation import check as validate
from services.tasks.api import updates
from services.tasks.api.applications import fold_application, refuse_calls
from services.tasks.catalog import Catalog
from services.tasks.domain import TaskStatus
from tests.unit.tasks.test_convert import record
from tests.unit.tasks.test_updates import update

CreateTask: Any = task_pb2.CreateTask
Task: Any = task_pb2.Task
ProviderConfig: Any = providers_pb2.ProviderConfig
FAL, LOCAL = PROVIDERS["FAL_STANDARD"], PROVIDERS["LOCAL"]
FOLDED = ("EDITING", "REFINE", "GENERATION", "EXPERIMENTAL_FAL")


def task(name: str, application: str | None, config: dict[str, Any] | None = None, **members: Any) -> Any:
    spec = CreateTask(
        **{TASK_TYPES[name].detail: {} if application is None else {"fal_app_id": application}}, **members
    )
    if config is not None:
        spec.provider_config.CopyFrom(ProviderConfig(fal_standard=config))
    return spec


def fold(spec: Any, name: str, provider: Any = FAL, fallback: Any = None) -> Any:
    fold_application(spec, TASK_TYPES[name], provider, fallback)
    return getattr(spec, TASK_TYPES[name].detail)


def fault(name: str, spec: Any, provider: Any = FAL, fallback: Any = None) -> tuple[str, str]:
    with pytest.raises(MeshError) as error:
        fold(spec, name, provider, fallback)
    [violation] = error.value.violations
    return violation.path, violation.type


@pytest.mark.parametrize("name", FOLDED)
def test_an_application_of_the_task_is_the_providers_too(name: str) -> None:
    spec = task(name, "fal-ai/flux")
    fold(spec, name)
    assert spec.provider_config.fal_standard.fal_app_id == "fal-ai/flux"
    spec = task(name, "fal-ai/flux", {"additional_static_params": {"a": 1}})
    fold(spec, name)
    assert spec.provider_config.fal_standard.fal_app_id == "fal-ai/flux"
    assert spec.provider_config.fal_standard.additional_static_params["a"] == 1


@pytest.mark.parametrize("name", ["EDITING", "REFINE", "GENERATION"])
def test_an_application_of_the_settings_is_shown_by_the_task(name: str) -> None:
    assert fold(task(name, None, {"fal_app_id": "fal-ai/flux"}), name).fal_app_id == "fal-ai/flux"


@pytest.mark.parametrize("name", FOLDED)
def test_two_that_are_equal_are_one_and_two_that_differ_are_refused(name: str) -> None:
    fold(task(name, "fal-ai/flux", {"fal_app_id": "fal-ai/flux"}), name)
    differ = task(name, "fal-ai/flux", {"fal_app_id": "fal-ai/other"})
    assert fault(name, differ) == (f"task.{TASK_TYPES[name].detail}.fal_app_id", "application_differs")


def test_a_provider_that_calls_an_application_needs_one() -> None:
    where = ("task.provider_config.fal_standard.fal_app_id", "missing")
    assert fault("EDITING", task("EDITING", None)) == where
    assert fault("VIDEO_GENERATION", task_without("VIDEO_GENERATION")) == where


def task_without(name: str) -> Any:
    return CreateTask(**{TASK_TYPES[name].detail: {}})


def test_an_application_is_the_fallbacks_where_the_provider_calls_none() -> None:
    spec = task("EDITING", "fal-ai/flux")
    fold(spec, "EDITING", LOCAL, FAL)
    assert spec.fallback_provider_config.fal_standard.fal_app_id == "fal-ai/flux"
    assert not spec.HasField("provider_config")
    assert fault("EDITING", task("EDITING", None), LOCAL, FAL)[0].startswith("task.fallback_provider_config")


def test_an_application_that_nobody_calls_is_refused_and_a_task_without_one_is_not() -> None:
    assert fault("EDITING", task("EDITING", "fal-ai/flux"), LOCAL) == ("task.editing.fal_app_id", "application_unused")
    fold(task("EDITING", None), "EDITING", LOCAL)


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"fal_standard": {"fal_app_id": "a/b", "fal_request_id": "1"}}, "fal_standard.fal_request_id"),
        ({"fal_shootify_refiner": {"fal_app_id": "a/b", "fal_request_id": ""}}, "fal_shootify_refiner.fal_request_id"),
        ({"fashn_standard": {"fashn_task_id": "1"}}, "fashn_standard.fashn_task_id"),
    ],
)
def test_a_call_at_a_provider_is_never_a_callers_to_name(config: dict[str, Any], path: str) -> None:
    with pytest.raises(MeshError, match="written by the mesh") as error:
        refuse_calls(ProviderConfig(**config), "task.provider_config")
    assert error.value.violations[0].path == f"task.provider_config.{path}"


def test_settings_without_a_call_pass() -> None:
    refuse_calls(ProviderConfig(), "task.provider_config")
    refuse_calls(ProviderConfig(vertex={}), "task.provider_config")
    refuse_calls(ProviderConfig(fal_standard={"fal_app_id": "a/b"}), "task.provider_config")


@pytest.mark.parametrize("application", ["fal-ai/flux", "fal-ai/flux-pro/v1.1", "me_1/app.x"])
def test_names_of_applications_pass(application: str) -> None:
    validate(CreateTask(origin_instance="t", experimental_fal={"fal_app_id": application}))


@pytest.mark.parametrize(
    "application",
    [
        "flux",
        "fal-ai/",
        "/flux",
        "fal-ai//x",
        "../x",
        "fal-ai/../x",
        "fal-ai/..",
        "a/b?fal_webhook=https://evil",
        "a/b#c",
        "a b/c",
        "https://evil/x",
        "a/b\n",
        "a/%2e%2e",
        "@evil/x",
    ],
)
@pytest.mark.parametrize("place", ["task", "config"])
def test_what_could_lead_an_address_elsewhere_is_no_name(application: str, place: str) -> None:
    named = {"task": application, "config": "a/b"} if place == "task" else {"task": "a/b", "config": application}
    spec = CreateTask(
        origin_instance="t",
        experimental_fal={"fal_app_id": named["task"]},
        provider_config=ProviderConfig(fal_standard={"fal_app_id": named["config"]}),
    )
    with pytest.raises(MeshError) as error:
        validate(spec)
    assert "fal_app_id" in error.value.violations[0].path


def waiting(**members: Any) -> Any:
    detail = {"fal_app_id": "a/b", "fal_parameters": {"steps": 4}}
    config = ProviderConfig(fal_standard={"fal_app_id": "a/b"})
    return record(
        task_type="EXPERIMENTAL_FAL",
        provider_type="FAL_STANDARD",
        spec=CreateTask(experimental_fal=detail, provider_config=config).SerializeToString(),
        body=Task(experimental_fal=detail, provider_config=config).SerializeToString(),
        **members,
    )


def test_a_changed_application_is_the_settings_too() -> None:
    changed = updates.apply(waiting(), update(fal_app_id="a/c"), Catalog(task_types=TASK_TYPES, providers=PROVIDERS))
    for message in (CreateTask.FromString(changed.spec), Task.FromString(changed.body)):
        assert message.experimental_fal.fal_app_id == "a/c"
        assert message.provider_config.fal_standard.fal_app_id == "a/c"


def test_an_application_cannot_be_cleared_and_does_not_change_once_the_task_has_begun() -> None:
    cleared = updates.Update(task_pb2.TaskUpdate(), frozenset({"fal_app_id"}), operator=False)
    with pytest.raises(MeshError, match="cannot do without"):
        updates.check(waiting(), cleared)
    with pytest.raises(MeshError, match="only while the task is PENDING"):
        updates.check(waiting(status=TaskStatus.EXECUTING), update(fal_app_id="a/c"))


def test_whole_numbers_in_parameters_stay_exact_up_to_what_a_double_holds() -> None:
    parameters = Struct()
    parameters.update({"seed": 2**53, "num_images": 1})
    kept = CreateTask.FromString(
        CreateTask(experimental_fal={"fal_app_id": "a/b", "fal_parameters": parameters}).SerializeToString()
    ).experimental_fal.fal_parameters
    assert (int(kept["seed"]), kept["num_images"].is_integer()) == (2**53, True)
