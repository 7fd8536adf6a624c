"""The catalog of the contract: what is declared, and that a contract which contradicts itself is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from atelier.options.v1 import options_pb2
from atelier.tasks.v1 import enums_pb2, providers_pb2, task_pb2
from google.protobuf import descriptor_pb2, descriptor_pool

from meshkit import catalog
from meshkit.catalog import PROVIDERS, TASK_TYPES, CatalogError, Change, Form, MediaKind

LISTED = set(TASK_TYPES) - {"NOOP"}
# Which provider executes which type, as the reference decides it.
MATRIX = {
    "GENERATION": {"LOCAL", "FAL_STANDARD", "VERTEX"},
    "EDITING": {"LOCAL", "FAL_STANDARD", "VERTEX", "FASHN_STANDARD"},
    "REFINE": {
        "LOCAL",
        "FAL_STANDARD",
        "FAL_SHOOTIFY_REFINER",
        "FREEPIK_MAGNIFIC",
        "FREEPIK_MAGNIFIC_PRECISION",
        "NANO_BANANA_UPSCALER",
        "VERTEX",
        "SARTIQ_ULTIMATE_REFINER",
    },
    "VIDEO_GENERATION": {"LOCAL", "FAL_STANDARD"},
    "LLM_INTERACTION": {"LOCAL", "AI_CORE", "VERTEX"},
    "BACKGROUND_REMOVE": {"LOCAL", "FAL_STANDARD"},
    "BACKGROUND_FIX": {"LOCAL"},
    "IMAGE_ADJUSTER": {"LOCAL"},
    "DETAIL_ENHANCER": {"LOCAL", "FAL_GARMENT_FIXER", "SARTIQ_ULTIMATE_GARMENT_FIXER"},
    "FACE_ENHANCER": {"LOCAL", "SARTIQ_ULTIMATE_FACE_FIXER"},
    "EXPERIMENTAL_FAL": {"FAL_STANDARD"},
    "PHOTO_DETECTION": {"LOCAL"},
    "NOOP": {"LOCAL"},
}
Edit = Callable[[descriptor_pb2.FileDescriptorProto], None]


def test_every_type_and_provider_of_the_contract_is_declared() -> None:
    for specs, enum, prefix in (
        (TASK_TYPES, enums_pb2.TaskType, "TASK_TYPE_"),
        (PROVIDERS, enums_pb2.ProviderType, "PROVIDER_TYPE_"),
    ):
        numbers = {name: number for name, number in enum.items() if number}
        assert {f"{prefix}{name}": spec.number for name, spec in specs.items()} == numbers


def test_details_bear_the_numbers_of_their_types() -> None:
    for spec in TASK_TYPES.values():
        for message in (task_pb2.CreateTask, task_pb2.Task, task_pb2.TaskResult):
            assert message.DESCRIPTOR.fields_by_name[spec.detail].number == 100 + spec.number


def test_providers_execute_what_the_reference_decides() -> None:
    executed = {
        name: {provider.name for provider in PROVIDERS.values() if name in provider.task_types} for name in TASK_TYPES
    }
    assert executed == MATRIX


def test_settings_of_a_provider_lie_in_its_own_field() -> None:
    config: Any = providers_pb2.ProviderConfig
    for spec in PROVIDERS.values():
        assert catalog.provider_of_config(config(**{spec.config: {}})) is spec
    assert catalog.provider_of_config(config()) is None
    assert {spec.config for spec in PROVIDERS.values()} == set(config.DESCRIPTOR.fields_by_name)


def test_upscaling_is_asked_of_providers_that_refine() -> None:
    local = PROVIDERS["LOCAL"]
    assert {"UPSCALE_2X", "UPSCALE_4X", "UPSCALE_8X", "UPSCALE_FLOAT", "OUTPUT_SIZE", "FACE_DETAIL"} <= local.tasks[
        "REFINE"
    ]
    assert not any(one.startswith("UPSCALE") for one in local.capabilities(["GENERATION", "IMAGE_ADJUSTER"]))


def test_default_provider_is_local_but_for_fal_by_nature() -> None:
    assert {spec.name for spec in TASK_TYPES.values() if spec.default_provider != "LOCAL"} == {"EXPERIMENTAL_FAL"}
    assert TASK_TYPES["EXPERIMENTAL_FAL"].default_provider == "FAL_STANDARD"


def test_lists_are_inputs_and_outputs() -> None:
    lists = {(spec.name, one.public) for spec in TASK_TYPES.values() for one in spec.inputs if one.many}
    assert lists == {
        ("EDITING", "reference_images"),
        ("LLM_INTERACTION", "input_images"),
        ("BACKGROUND_REMOVE", "input_image_paths"),
    }
    assert [(one.field, one.many) for one in TASK_TYPES["BACKGROUND_REMOVE"].outputs] == [("result_image_paths", True)]


def test_sources_of_an_input_stand_in_their_order_of_precedence() -> None:
    base, references = TASK_TYPES["EDITING"].inputs
    assert [one.field for one in base.sources] == ["base_image", "base_image_data", "base_image_url"]
    assert base.kept.field == "base_image"
    assert [one.field for one in references.sources] == [
        "reference_images",
        "reference_image_data",
        "reference_image_url",
    ]
    assert (references.kept.field, references.first) == ("reference_images", "reference_image_path")
    assert not base.exclusive
    assert TASK_TYPES["GENERATION"].inputs[0].exclusive


def test_fields_that_take_data_are_those_the_gateway_stages() -> None:
    for spec in TASK_TYPES.values():
        create = task_pb2.CreateTask.DESCRIPTOR.fields_by_name[spec.detail].message_type
        assert create is not None
        staged = {one.name for one in create.fields if one.GetOptions().Extensions[options_pb2.field].upload}
        taken = {one.field for image in spec.inputs for one in image.sources if Form.DATA in one.accepts}
        assert taken == staged


def test_a_clip_is_told_from_an_image() -> None:
    assert [one.media for one in TASK_TYPES["VIDEO_GENERATION"].outputs] == [MediaKind.VIDEO]
    assert [one.media for one in TASK_TYPES["VIDEO_GENERATION"].inputs] == [MediaKind.IMAGE]


def test_seeds_and_adapters_are_declared() -> None:
    assert {spec.name: spec.seeds for spec in TASK_TYPES.values() if spec.seeds} == {
        "GENERATION": ("seed",),
        "EDITING": ("seed",),
        "REFINE": ("upscale_seed", "face_detail_seed"),
    }
    assert {spec.name for spec in TASK_TYPES.values() if spec.seed_in_config} == {"VIDEO_GENERATION"}
    assert {spec.name for spec in TASK_TYPES.values() if spec.adapters} == {"GENERATION"}


def test_internal_types_are_those_the_document_hides() -> None:
    assert {spec.name for spec in TASK_TYPES.values() if spec.internal} == {"NOOP"}


def test_files_of_a_type_lie_below_its_prefix() -> None:
    documented = {"EDITING": "editings/x/", "GENERATION": "generations/x/", "REFINE": "refines/x/"}
    assert {name: TASK_TYPES[name].folder("x") for name in documented} == documented


def test_specs_are_found_by_what_is_on_the_wire() -> None:
    for spec in TASK_TYPES.values():
        assert catalog.type_numbered(spec.number) is catalog.type_of_detail(spec.detail) is spec
        assert catalog.type_name(spec.number) == spec.name
    assert catalog.type_of_detail(None) is catalog.type_of_detail("of_a_newer_contract") is None
    for provider in PROVIDERS.values():
        assert catalog.provider_numbered(provider.number) is provider
    with pytest.raises(KeyError):
        catalog.type_numbered(1000)


def test_members_of_an_update_have_one_rule_each() -> None:
    names = {one.name for one in task_pb2.TaskUpdate.DESCRIPTOR.fields}
    assert set(catalog.DECLARED.changes) | catalog.DECLARED.type_members == names
    assert not set(catalog.DECLARED.changes) & catalog.DECLARED.type_members
    carried = {name for spec in TASK_TYPES.values() for name in spec.changes}
    assert carried == catalog.DECLARED.type_members
    assert Change.NEVER not in TASK_TYPES["GENERATION"].changes.values()


# -- contracts that contradict themselves ------------------------------------------------------------------------------


def load(*edits: tuple[str, Edit]) -> catalog.Declarations:
    """Load the contract with some of its files changed."""
    pool = descriptor_pool.DescriptorPool()
    done: set[str] = set()

    def add(file: Any) -> None:
        if file.name in done:
            return
        done.add(file.name)
        for needed in file.dependencies:
            add(needed)
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        for name, edit in edits:
            if file.name.endswith(f"/{name}.proto"):
                edit(proto)
        pool.Add(proto)

    add(task_pb2.DESCRIPTOR)
    package = "atelier.tasks.v1."
    return catalog.load(
        task_types=pool.FindEnumTypeByName(f"{package}TaskType"),
        providers=pool.FindEnumTypeByName(f"{package}ProviderType"),
        capabilities=pool.FindEnumTypeByName(f"{package}ProviderCapability"),
        create=pool.FindMessageTypeByName(f"{package}CreateTask"),
        public=pool.FindMessageTypeByName(f"{package}Task"),
        result=pool.FindMessageTypeByName(f"{package}TaskResult"),
        update=pool.FindMessageTypeByName(f"{package}TaskUpdate"),
        config=pool.FindMessageTypeByName(f"{package}ProviderConfig"),
    )


def value(name: str, edit: Callable[[Any], None]) -> tuple[str, Edit]:
    """Change the options of an enum value."""

    def apply(file: descriptor_pb2.FileDescriptorProto) -> None:
        [found] = [one for enum in file.enum_type for one in enum.value if one.name == name]
        edit(found.options)

    return "enums", apply


def member(file_name: str, message: str, name: str, edit: Callable[[Any], None]) -> tuple[str, Edit]:
    """Change what a field is to a task."""

    def apply(file: descriptor_pb2.FileDescriptorProto) -> None:
        [owner] = [one for one in file.message_type if one.name == message]
        [found] = [one for one in owner.field if one.name == name]
        edit(found.options.Extensions[options_pb2.task_field])

    return file_name, apply


def type_facts(**changes: Any) -> Callable[[Any], None]:
    def edit(options: Any) -> None:
        for name, new in changes.items():
            setattr(options.Extensions[options_pb2.task_type], name, new)

    return edit


def provider_facts(edit: Callable[[Any], None]) -> Callable[[Any], None]:
    return lambda options: edit(options.Extensions[options_pb2.provider])


def test_unchanged_contract_loads_alike() -> None:
    again = load()
    assert again == catalog.DECLARED


def sketch(file: descriptor_pb2.FileDescriptorProto) -> None:
    """Declare a task type and a provider that the contract does not have."""
    if file.name.endswith("/enums.proto"):
        enums = {one.name: one for one in file.enum_type}
        drawn = enums["TaskType"].value.add(name="TASK_TYPE_SKETCH", number=50)
        facts: Any = drawn.options.Extensions[options_pb2.task_type]
        facts.detail, facts.prefix, facts.default_provider = "sketch", "sketches", "PENCIL"
        facts.expected_seconds, facts.timeout_seconds = 1, 60
        pencil = enums["ProviderType"].value.add(name="PROVIDER_TYPE_PENCIL", number=50)
        provider: Any = pencil.options.Extensions[options_pb2.provider]
        provider.queue, provider.config = "pencil", "pencil"
        provider.tasks.add(task_type="SKETCH", capabilities=["SEED"])
        return
    kind = descriptor_pb2.FieldDescriptorProto
    text = {"type": kind.TYPE_STRING, "label": kind.LABEL_OPTIONAL}
    messages = {one.name: one for one in file.message_type}
    if file.name.endswith("/providers.proto"):
        settings = file.message_type.add(name="PencilConfig")
        messages["ProviderConfig"].field.add(
            name="pencil",
            number=50,
            type=kind.TYPE_MESSAGE,
            label=kind.LABEL_OPTIONAL,
            type_name=f".{file.package}.{settings.name}",
            oneof_index=0,
        )
        return
    create, public = (file.message_type.add(name=name) for name in ("CreateSketchTask", "SketchTaskPublic"))
    given, seed = create.field.add(name="photo", number=1, **text), create.field.add(name="seed", number=2, **text)
    given.options.Extensions[options_pb2.task_field].accepts.append(options_pb2.FORM_PATH)
    seed.options.Extensions[options_pb2.task_field].seed = True
    shown, made = (public.field.add(name=name, number=n, **text) for n, name in enumerate(("photo", "drawing"), 1))
    photo: Any = shown.options.Extensions[options_pb2.task_field].input
    photo.name, photo.media = "photo", options_pb2.MEDIA_IMAGE
    photo.sources.append("photo")
    made.options.Extensions[options_pb2.task_field].output.media = options_pb2.MEDIA_IMAGE
    for owner, detail in (("CreateTask", create), ("Task", public), ("TaskResult", public)):
        messages[owner].field.add(
            name="sketch",
            number=150,
            type=kind.TYPE_MESSAGE,
            label=kind.LABEL_OPTIONAL,
            type_name=f".{file.package}.{detail.name}",
            oneof_index=next(at for at, one in enumerate(messages[owner].oneof_decl) if one.name == "detail"),
        )


def test_a_type_and_a_provider_are_what_the_contract_says_of_them() -> None:
    added = load(("enums", sketch), ("providers", sketch), ("task", sketch))
    spec = added.task_types["SKETCH"]
    assert (spec.detail, spec.folder("x"), spec.seeds) == ("sketch", "sketches/x/", ("seed",))
    assert [(one.name, one.public, one.kept.field) for one in spec.inputs] == [("photo", "photo", "photo")]
    assert [one.field for one in spec.outputs] == ["drawing"]
    assert added.providers["PENCIL"].tasks == {"SKETCH": {"SEED"}}
    assert {name: added.task_types[name] for name in TASK_TYPES} == dict(TASK_TYPES), "the others stay as they are"


def test_some_types_are_steered_by_their_config() -> None:
    steered = {name: spec.steered_by.name for name, spec in TASK_TYPES.items() if spec.steered_by is not None}
    assert steered == {
        "GENERATION": "LocalGenerationConfig",
        "EDITING": "LocalEditingConfig",
        "REFINE": "LocalRefineConfig",
        "VIDEO_GENERATION": "LocalVideoConfig",
        "LLM_INTERACTION": "LocalLanguageConfig",
        "BACKGROUND_REMOVE": "LocalCutoutConfig",
        "DETAIL_ENHANCER": "SartiqUltimateGarmentFixerConfig",
        "FACE_ENHANCER": "SartiqUltimateFaceFixerConfig",
    }
    known = {TASK_TYPES[name].detail: message for name, message in steered.items()}
    held = providers_pb2.TaskConfig.DESCRIPTOR.oneofs_by_name["detail"].fields
    assert {field.name: field.message_type.name for field in held if field.message_type is not None} == known


REFINE = "TASK_TYPE_REFINE"
VERTEX = "PROVIDER_TYPE_VERTEX"
SOURCE = ("editing", "CreateEditingTask", "base_image")
BASE = ("editing", "EditingTaskPublic", "base_image_path")
LIST = ("editing", "EditingTaskPublic", "reference_images")


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (value(REFINE, lambda one: one.ClearExtension(options_pb2.task_type)), "declares nothing"),
        (value(VERTEX, lambda one: one.ClearExtension(options_pb2.provider)), "declares nothing"),
        (value(REFINE, type_facts(detail="refinement")), "no detail 'refinement'"),
        (value(REFINE, type_facts(detail="editing")), "'editing' is declared twice"),
        (value(REFINE, type_facts(prefix="")), "has a prefix"),
        (value(REFINE, type_facts(timeout_seconds=0)), "seconds above 0"),
        (value(REFINE, type_facts(default_provider="NOBODY")), "default provider 'NOBODY'"),
        (value(REFINE, type_facts(default_provider="AI_CORE")), "default provider 'AI_CORE'"),
        (value(REFINE, type_facts(steered_by="atelier.tasks.v1.Nothing")), "no message 'atelier.tasks.v1.Nothing'"),
        (value(VERTEX, provider_facts(lambda one: setattr(one, "queue", ""))), "has a queue"),
        (value(VERTEX, provider_facts(lambda one: setattr(one, "config", "gemini"))), "settings in"),
        (value(VERTEX, provider_facts(lambda one: setattr(one, "config", "ai_core"))), "'ai_core' is declared twice"),
        (value(VERTEX, provider_facts(lambda one: setattr(one.tasks[0], "task_type", "SING"))), "no 'SING'"),
        (value(VERTEX, provider_facts(lambda one: one.tasks[0].capabilities.append("FLY"))), "no 'FLY'"),
        (value(VERTEX, provider_facts(lambda one: one.tasks.append(one.tasks[0]))), "'GENERATION' is declared twice"),
        (member(*SOURCE, lambda one: one.ClearField("accepts")), "no 'base_image' that accepts"),
        (member(*BASE, lambda one: one.ClearField("input")), "accepts a file, yet no input names it"),
        (member(*BASE, lambda one: one.input.sources.append("picture")), "no 'picture' that accepts"),
        (member(*BASE, lambda one: one.input.sources.append("base_image")), "'base_image' is declared twice"),
        (member(*BASE, lambda one: one.input.sources.append("reference_images")), "a list among its sources"),
        (member(*BASE, lambda one: setattr(one.input, "name", "")), "has a name"),
        (member(*BASE, lambda one: setattr(one.input, "name", "reference")), "'reference' is declared twice"),
        (member(*BASE, lambda one: one.input.ClearField("media")), "what its file is"),
        (member(*BASE, lambda one: setattr(one.input, "first", "prompt")), "no field 'prompt' for its first item"),
        (member(*LIST, lambda one: setattr(one.input, "first", "picture")), "no field 'picture' for its first item"),
        (member("task", "TaskUpdate", "priority", lambda one: one.ClearField("change")), "who may change it"),
        (
            member("generation", "GenerationTaskPublic", "fal_app_id", lambda one: one.ClearField("change")),
            "only where, an update has it",
        ),
        (
            member("generation", "GenerationTaskPublic", "prompt", lambda one: setattr(one, "change", 1)),
            "only where, an update has it",
        ),
    ],
)
def test_contract_that_contradicts_itself_is_refused(edit: tuple[str, Edit], text: str) -> None:
    with pytest.raises(CatalogError, match=text):
        load(edit)
