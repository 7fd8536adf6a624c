"""What an installation serves: by default what this release has handlers for, else what its settings name."""

import dataclasses
from typing import Any

import pytest
from atelier.tasks.v1 import enums_pb2, task_pb2, tasks_service_pb2
from atelier.tasks.v1.providers_pb2 import LocalProviderConfig, ProviderConfig
from google.protobuf import struct_pb2
from pydantic import ValidationError

from meshkit import cutouts, validation
from meshkit.catalog import OWN_PROVIDERS, PROVIDERS, TASK_TYPES
from meshkit.errors import MeshError
from modelkit.cutout import NETWORKS, CutoutFamily
from services.tasks.catalog import TASK_TYPES_WITH_HANDLERS, Catalog
from services.tasks.config import TasksSettings
from services.tasks.convert import to_catalog

CreateTask: Any = task_pb2.CreateTask
CreateTaskRequest: Any = tasks_service_pb2.CreateTaskRequest
LOCAL = PROVIDERS["LOCAL"]
# In the order of the contract.
SERVED = tuple(name for name in TASK_TYPES if name in TASK_TYPES_WITH_HANDLERS)
FAL = enums_pb2.PROVIDER_TYPE_FAL_STANDARD


def test_this_release_serves_what_it_has_handlers_for() -> None:
    answer = to_catalog(Catalog(enable_noop=True), internal=True)
    assert list(answer.task_types) == [TASK_TYPES[name].number for name in (*SERVED, "NOOP")]
    local, *pipelines = answer.providers
    assert {PROVIDERS[name].number for name in OWN_PROVIDERS} == {each.provider_type for each in answer.providers}
    assert len(pipelines) == 3
    assert local.provider_type == enums_pb2.PROVIDER_TYPE_LOCAL
    assert set(local.capabilities) == LOCAL.capabilities(TASK_TYPES_WITH_HANDLERS)
    assert list(local.capabilities) == sorted(local.capabilities)
    assert list(answer.queues) == ["ai_core", "fal", "fashn", "freepik", "inference", "training", "vertex"]


def test_internal_types_are_served_where_configured_and_never_listed() -> None:
    assert "NOOP" not in Catalog().served_types
    served = Catalog(enable_noop=True)
    assert served.served_types == (*SERVED, "NOOP")
    assert served.public_types == list(SERVED)


def test_capabilities_are_those_that_a_provider_has_for_the_tasks_own_type() -> None:
    served, refine = Catalog(), TASK_TYPES["REFINE"]
    served.check_capabilities(["UPSCALE_4X", "FACE_DETAIL"], LOCAL, refine, "task.active_provider_capabilities")
    with pytest.raises(MeshError) as error:
        served.check_capabilities(["SEED", "LORA"], LOCAL, refine, "task.active_provider_capabilities")
    assert error.value.violations[0].path == "task.active_provider_capabilities[1]"
    served.check_capabilities(["LORA"], LOCAL, TASK_TYPES["GENERATION"], "task.active_provider_capabilities")


def test_type_that_is_not_served_is_refused_with_those_that_are() -> None:
    with pytest.raises(MeshError) as error:
        Catalog(task_types=["GENERATION", "IMAGE_ADJUSTER"], enable_noop=True).type_of(CreateTask(refine={}))
    assert error.value.message == (
        "Tasks of type REFINE are not served; this installation serves GENERATION, IMAGE_ADJUSTER"
    )
    with pytest.raises(MeshError) as error:
        Catalog().type_of(CreateTask())
    assert error.value.violations[0].type == "missing"


def test_provider_is_the_types_default_where_none_is_named() -> None:
    served = Catalog(task_types=TASK_TYPES, providers=PROVIDERS)
    names = {name: served.provider_of(0, spec, "task.provider_type").name for name, spec in TASK_TYPES.items()}
    assert names == dict.fromkeys(TASK_TYPES, "LOCAL") | {"EXPERIMENTAL_FAL": "FAL_STANDARD"}


def test_provider_must_be_served_and_execute_the_type() -> None:
    generation, refine = TASK_TYPES["GENERATION"], TASK_TYPES["REFINE"]
    for served, spec, number, kind in (
        (Catalog(), generation, FAL, "provider_type_not_served"),
        (Catalog(), TASK_TYPES["EXPERIMENTAL_FAL"], 0, "provider_type_not_served"),
        (Catalog(providers=PROVIDERS), refine, enums_pb2.PROVIDER_TYPE_AI_CORE, "provider_type_unfit"),
    ):
        with pytest.raises(MeshError) as error:
            served.provider_of(number, spec, "task.provider_type")
        assert [(one.path, one.type) for one in error.value.violations] == [("task.provider_type", kind)]
    assert Catalog(providers=PROVIDERS).provider_of(FAL, refine, "task.provider_type").queue == "fal"


def test_a_network_for_cut_outs_must_be_here() -> None:
    def config(name: str) -> ProviderConfig:
        return ProviderConfig(local=LocalProviderConfig(rembg_model=name))

    for name in cutouts.SHIPPED:
        Catalog().check_network(config(name), "task.provider_config")
    Catalog().check_network(ProviderConfig(), "task.provider_config")
    Catalog(cutout_models=["silueta"]).check_network(config("silueta"), "task.provider_config")
    with pytest.raises(MeshError) as error:
        Catalog(cutout_models=["silueta"]).check_network(config("sam"), "task.provider_config")
    [violation] = error.value.violations
    assert violation.path == "task.provider_config.local.rembg_model"
    assert violation.message == "The network sam is not here; this installation has u2net, u2netp, silueta"


def test_networks_that_are_said_to_ship_do() -> None:
    assert tuple(card.name for card in CutoutFamily.packaged) == cutouts.SHIPPED
    assert set(NETWORKS) == set(cutouts.documented()) - {"sam"}


def test_every_pair_of_the_contract_has_a_cost() -> None:
    costs = Catalog().costs
    assert costs["IMAGE_ADJUSTER/LOCAL"] == 0.5
    assert costs["VIDEO_GENERATION/FAL_STANDARD"] == 60.0
    assert costs["TRAINING/LOCAL"] == 600.0
    pairs = {f"{name}/{spec.name}" for spec in PROVIDERS.values() for name in spec.tasks}
    assert set(costs) == pairs | {"TRAINING/LOCAL"}


def test_settings_name_what_is_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TasksSettings().served_task_types == TASK_TYPES_WITH_HANDLERS
    assert TasksSettings().served_providers == (
        "LOCAL",
        "SARTIQ_ULTIMATE_REFINER",
        "SARTIQ_ULTIMATE_GARMENT_FIXER",
        "SARTIQ_ULTIMATE_FACE_FIXER",
    )
    monkeypatch.setenv("ATELIER_SERVED_TASK_TYPES", "GENERATION, EDITING")
    monkeypatch.setenv("ATELIER_SERVED_PROVIDERS", "LOCAL,FAL_STANDARD")
    assert TasksSettings().served_task_types == ("GENERATION", "EDITING")
    assert TasksSettings().served_providers == ("LOCAL", "FAL_STANDARD")


def test_a_type_that_one_provider_alone_executes_comes_with_it() -> None:
    assert TasksSettings().accepted_task_types == TASK_TYPES_WITH_HANDLERS
    served = ("LOCAL", "FAL_STANDARD")
    settings = TasksSettings(served_providers=served)
    assert settings.accepted_task_types == (*TASK_TYPES_WITH_HANDLERS, "EXPERIMENTAL_FAL")
    chosen = TasksSettings(served_providers=served, served_task_types=TASK_TYPES_WITH_HANDLERS)
    assert chosen.accepted_task_types == TASK_TYPES_WITH_HANDLERS


@pytest.mark.parametrize("name", ["ATELIER_SERVED_TASK_TYPES", "ATELIER_SERVED_PROVIDERS"])
def test_settings_that_name_the_unknown_are_refused_at_start(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "SINGING")
    with pytest.raises(ValidationError, match="SINGING; known are"):
        TasksSettings()


def test_a_field_that_the_provider_cannot_follow_is_refused_and_says_who_can() -> None:
    asks = TASK_TYPES["LLM_INTERACTION"]
    assert asks.capabilities == {"input_images": "VISION"}
    served = Catalog(providers=PROVIDERS)
    served.check_fields({}, LOCAL, asks)
    served.check_fields(asks.capabilities, PROVIDERS["AI_CORE"], asks)
    with pytest.raises(MeshError) as error:
        served.check_fields(asks.capabilities, LOCAL, asks)
    [fault] = error.value.violations
    assert (fault.path, fault.type) == ("task.llm_interaction.input_images", "capability_missing")
    assert "VERTEX, AI_CORE has it" in fault.message
    with pytest.raises(MeshError, match="no provider that is served has it"):
        Catalog().check_fields(asks.capabilities, LOCAL, asks)


def config(**members: Any) -> struct_pb2.Struct:
    made = struct_pb2.Struct()
    made.update(members)
    return made


def test_members_of_config_that_steer_a_local_worker_are_held_to_their_rules() -> None:
    faces, generation = TASK_TYPES["FACE_ENHANCER"], TASK_TYPES["GENERATION"]
    served = Catalog()
    served.check_config(config(max_retries=5, mine="x"), faces, LOCAL, "task.config")
    served.check_config(config(max_retries=99), generation, LOCAL, "task.config")
    served.check_config(config(max_retries=99), faces, PROVIDERS["SARTIQ_ULTIMATE_FACE_FIXER"], "task.config")
    with pytest.raises(MeshError) as error:
        served.check_config(config(max_retries=99), faces, LOCAL, "task.config")
    assert [one.path for one in error.value.violations] == ["task.config.max_retries"]


@pytest.mark.parametrize("name", ["lpips", "dists"])
def test_a_threshold_without_its_network_is_refused(name: str) -> None:
    faces, asked = TASK_TYPES["FACE_ENHANCER"], config(**{f"{name}_threshold": 0.3})
    Catalog(consistency_networks=[name]).check_config(asked, faces, LOCAL, "task.config")
    Catalog().check_config(config(**{f"{name}_threshold": 0}), faces, LOCAL, "task.config")
    with pytest.raises(MeshError) as error:
        Catalog().check_config(asked, faces, LOCAL, "task.config")
    assert [(one.path, one.type) for one in error.value.violations] == [
        (f"task.config.{name}_threshold", "network_not_served")
    ]
    assert "only 0" in error.value.message


@pytest.mark.parametrize("name", ["lpips", "dists"])
@pytest.mark.parametrize(
    "pipeline", ["sartiq_ultimate_refiner", "sartiq_ultimate_garment_fixer", "sartiq_ultimate_face_fixer"]
)
def test_a_threshold_of_a_pipeline_without_its_network_is_refused(pipeline: str, name: str) -> None:
    def asked(threshold: float) -> ProviderConfig:
        made = ProviderConfig()
        setattr(getattr(made, pipeline), f"{name}_threshold", threshold)
        return made

    Catalog().check_network(asked(0), "task.provider_config")
    Catalog(consistency_networks=[name]).check_network(asked(0.3), "task.provider_config")
    with pytest.raises(MeshError) as error:
        Catalog().check_network(asked(0.3), "task.provider_config")
    assert [(one.path, one.type) for one in error.value.violations] == [
        (f"task.provider_config.{pipeline}.{name}_threshold", "network_not_served")
    ]


def test_networks_are_named_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert TasksSettings().consistency_networks == {}
    monkeypatch.setenv("ATELIER_CONSISTENCY_NETWORKS", "lpips=/a.safetensors, dists=/b.safetensors")
    assert TasksSettings().consistency_networks == {"lpips": "/a.safetensors", "dists": "/b.safetensors"}
    for wrong in ("other=/a.safetensors", "lpips=/a.bin", "lpips"):
        monkeypatch.setenv("ATELIER_CONSISTENCY_NETWORKS", wrong)
        with pytest.raises(ValidationError):
            TasksSettings()


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"upscale_factor": 2.0}, ["UPSCALE_2X"]),
        ({"upscale_factor": 4}, ["UPSCALE_4X"]),
        ({"upscale_factor": 8}, ["UPSCALE_8X"]),
        ({"upscale_factor": 1}, ["UPSCALE_FLOAT"]),
        ({"upscale_factor": 1.5}, ["UPSCALE_FLOAT"]),
        ({"upscale_factor": 3}, ["UPSCALE_FLOAT"]),
        ({"upscale_factor": 16}, ["UPSCALE_FLOAT"]),
        ({"target_width": 512}, ["OUTPUT_SIZE"]),
        ({"upscale_enabled": False}, []),
        ({"upscale_enabled": False, "upscale_factor": 2}, []),
    ],
)
def test_capabilities_of_enlarging_follow_from_the_factor_and_are_filled_in(
    fields: dict[str, Any], needed: list[str]
) -> None:
    refine, path = TASK_TYPES["REFINE"], "task.active_provider_capabilities"
    detail = CreateTask(refine={"upscale_enabled": True, **fields}).refine
    catalog = Catalog(task_types=["REFINE"])
    assert catalog.relied_on([], detail, refine, LOCAL, path) == needed
    listed = [*needed, "SEED"]
    assert catalog.relied_on(listed, detail, refine, LOCAL, path) == listed
    if needed:
        with pytest.raises(MeshError) as error:
            catalog.relied_on(["SEED"], detail, refine, LOCAL, path)
        assert (error.value.violations[0].path, error.value.violations[0].type) == (path, "capability_required")
        assert needed[0] in error.value.violations[0].message


def test_a_provider_that_lacks_what_a_factor_asks_for_is_refused_by_the_factors_name() -> None:
    refine = TASK_TYPES["REFINE"]
    narrow = dataclasses.replace(LOCAL, tasks={"REFINE": frozenset({"UPSCALE_2X"})})
    detail = CreateTask(refine={"upscale_enabled": True, "upscale_factor": 4}).refine
    with pytest.raises(MeshError) as error:
        Catalog(task_types=["REFINE"]).relied_on([], detail, refine, narrow, "task.active_provider_capabilities")
    assert error.value.violations[0].path == "task.refine.upscale_factor"
    assert "UPSCALE_4X" in error.value.violations[0].message


def test_other_types_rely_on_what_their_callers_list() -> None:
    detail = CreateTask(generation={"prompt": "a"}).generation
    assert Catalog().relied_on([], detail, TASK_TYPES["GENERATION"], LOCAL, "x") == []
    assert Catalog().relied_on(["SEED"], detail, TASK_TYPES["GENERATION"], LOCAL, "x") == ["SEED"]


def test_the_seeds_of_enlarging_and_of_faces_are_drawn() -> None:
    assert TASK_TYPES["REFINE"].seeds == ("upscale_seed", "face_detail_seed")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"upscale_factor": 2, "target_width": 64}, "upscale_factor excludes target_width and target_height"),
        ({}, "upscale_factor, target_width or target_height is required where upscale_enabled is true"),
        ({"upscale_factor": 0.5}, "task.refine.upscale_factor"),
        ({"upscale_factor": 2, "upscale_denoise": 1.5}, "task.refine.upscale_denoise"),
        ({"target_width": 8193}, "task.refine.target_width"),
        ({"target_height": 15}, "task.refine.target_height"),
    ],
)
def test_a_picture_is_enlarged_by_one_measure(fields: dict[str, Any], message: str) -> None:
    request = CreateTaskRequest(task={"origin_instance": "x", "refine": {"base_image_url": "a.png", **fields}})
    validation.apply_defaults(request)
    with pytest.raises(MeshError) as error:
        validation.check(request)
    assert any(message in f"{one.path}: {one.message}" for one in error.value.violations)


def test_without_enlarging_no_measure_is_required() -> None:
    refine = {"base_image_url": "a.png", "upscale_enabled": False}
    request = CreateTaskRequest(task={"origin_instance": "x", "refine": refine})
    validation.apply_defaults(request)
    validation.check(request)
    assert (request.task.refine.upscale_denoise, request.task.refine.face_detail_denoise) == (0.0, 0.4)
