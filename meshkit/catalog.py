"""Task types and providers as the contract declares them.

Built once from the options of `proto/atelier/tasks/v1`, and checked on the way: every name in an option must resolve,
so that a mistake in the contract stops the process at start. Pure, and no service is known here. Which types and
providers an installation serves is configuration of the tasks service.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import Any, cast

from atelier.options.v1 import options_pb2
from atelier.tasks.v1 import enums_pb2, providers_pb2, task_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from meshkit.spelling import value_names


class CatalogError(Exception):
    """The contract contradicts itself; raised when it is loaded, never while serving."""


class MediaKind(StrEnum):
    """What a file is."""

    IMAGE = "IMAGE"
    VIDEO = "VIDEO"
    FILE = "FILE"


class Form(StrEnum):
    """How a caller gives a file: in the request, by an http(s) address, by its path in storage."""

    DATA = "DATA"
    URL = "URL"
    PATH = "PATH"


class Change(StrEnum):
    """Who may change a member of a task, and when."""

    ANY_TIME = "ANY_TIME"
    WHILE_PENDING = "WHILE_PENDING"
    OPERATOR = "OPERATOR"
    NEVER = "NEVER"
    IGNORED = "IGNORED"


@dataclass(frozen=True, slots=True)
class SourceSpec:
    """A field of a Create message that carries a file.

    Attributes:
        field: Its name.
        accepts: Forms that it takes.
        many: Whether it is a list.
    """

    field: str
    accepts: frozenset[Form]
    many: bool


@dataclass(frozen=True, slots=True)
class InputSpec:
    """A file, or a list of files, that a task starts from.

    Attributes:
        name: Name of the object that data becomes, without an extension; items of a list are numbered.
        media: What it is.
        public: Field of the public message that shows where it lies.
        many: Whether it is a list.
        first: For a list, field of the public message that shows its first item.
        sources: Fields of the Create message that carry it; the first that is set counts.
        exclusive: Whether two sources in one request are refused.
        kept: The source that holds it in the stored request, as a path or an address.
    """

    name: str
    media: MediaKind
    public: str
    many: bool
    first: str | None
    sources: tuple[SourceSpec, ...]
    exclusive: bool
    kept: SourceSpec


@dataclass(frozen=True, slots=True)
class OutputSpec:
    """A file, or a list of files, that an attempt writes.

    Attributes:
        field: Field of the public message that shows its path.
        media: What it is.
        many: Whether it is a list.
    """

    field: str
    media: MediaKind
    many: bool


@dataclass(frozen=True, slots=True)
class NeedSpec:
    """A capability that a task relies on for the value of a field.

    Attributes:
        field: Field of the Create message.
        capability: Spelling of the capability.
        values: Values that need it; where empty, all that no other need of the field names.
        absent: Whether it is needed where the field is absent, and only there.
        where: Field that must be true; None where there is no such condition.
    """

    field: str
    capability: str
    values: frozenset[float]
    absent: bool
    where: str | None


@dataclass(frozen=True, slots=True)
class TaskTypeSpec:
    """A task type.

    Attributes:
        name: Its spelling (`GENERATION`).
        number: Its number in the contract.
        detail: Its field in the `detail` of CreateTask, Task and TaskResult.
        prefix: First folder of its objects.
        expected_seconds: Device seconds that an attempt is expected to take.
        timeout_seconds: How long one attempt may run.
        internal: Whether it is for tests and benchmarks alone.
        default_provider: Provider of a task that names none.
        inputs: Files that it starts from.
        outputs: Files that an attempt writes.
        adapters: Fields of the Create message that name LoRA adapters.
        seeds: Fields of the Create message that are drawn where absent.
        seed_in_config: Whether its seed is a member of `config`, drawn there where absent.
        capabilities: By field of the Create message that not every provider can follow, the capability it takes.
        changes: Members of its public message that an update may name, and who may change them.
        steered_by: Message whose fields a task's `config` may hold to steer a local worker; None where nothing does.
        needs: Capabilities that a task relies on, by the values of its fields.
    """

    name: str
    number: enums_pb2.TaskType.ValueType
    detail: str
    prefix: str
    expected_seconds: float
    timeout_seconds: float
    internal: bool
    default_provider: str
    inputs: tuple[InputSpec, ...]
    outputs: tuple[OutputSpec, ...]
    adapters: tuple[str, ...]
    seeds: tuple[str, ...]
    seed_in_config: bool
    capabilities: Mapping[str, str]
    changes: Mapping[str, Change]
    steered_by: Descriptor | None
    needs: tuple[NeedSpec, ...]

    def relied_on(self, detail: Any) -> dict[str, str]:
        """Return the capabilities that a task relies on, by the values of its Create message.

        Args:
            detail: The Create message, with its defaults.

        Returns:
            The field that asks for it, by the capability's spelling.
        """
        found = {}
        for need in self.needs:
            value = getattr(detail, need.field) if detail.HasField(need.field) else None
            named = {one for other in self.needs if other.field == need.field for one in other.values}
            fits = value in need.values if need.values else value not in named
            if (need.where is None or getattr(detail, need.where)) and fits and need.absent == (value is None):
                found[need.capability] = need.field
        return found

    def folder(self, task_id: object) -> str:
        """Folder of a task's objects, ending in `/`."""
        return f"{self.prefix}/{task_id}/"


@dataclass(frozen=True, slots=True)
class ProviderSpec:
    """A provider.

    Attributes:
        name: Its spelling (`LOCAL`).
        number: Its number in the contract.
        queue: Queue of its tasks where the caller names none.
        config: Field of its settings in ProviderConfig.
        tasks: By task type that it executes, the capabilities that a task of the type may rely on.
        service_task_id: Field of its settings for the name that it gave the task's request; None where there is none.
        counted_by: Field of its settings by which it counts calls and fails; None where it is one as a whole.
    """

    name: str
    number: enums_pb2.ProviderType.ValueType
    queue: str
    config: str
    tasks: Mapping[str, frozenset[str]]
    service_task_id: str | None = None
    counted_by: str | None = None

    @property
    def task_types(self) -> frozenset[str]:
        """Spellings of the types that it executes."""
        return frozenset(self.tasks)

    def capabilities(self, task_types: Iterable[str] | None = None) -> frozenset[str]:
        """Return what it can do for any of these types, for all of its own where none are named."""
        chosen = self.tasks if task_types is None else [name for name in task_types if name in self.tasks]
        return frozenset(one for name in chosen for one in self.tasks[name])


@dataclass(frozen=True, slots=True)
class Declarations:
    """Everything that the contract declares.

    Attributes:
        task_types: By spelling, in the contract's order.
        providers: By spelling, in the contract's order.
        changes: Members of every task that an update may name, and who may change them.
        type_members: Members of an update that belong to a type's own message.
    """

    task_types: Mapping[str, TaskTypeSpec]
    providers: Mapping[str, ProviderSpec]
    changes: Mapping[str, Change]
    type_members: frozenset[str]


def load(
    *,
    task_types: EnumDescriptor = enums_pb2.TaskType.DESCRIPTOR,
    providers: EnumDescriptor = enums_pb2.ProviderType.DESCRIPTOR,
    capabilities: EnumDescriptor = enums_pb2.ProviderCapability.DESCRIPTOR,
    create: Descriptor = task_pb2.CreateTask.DESCRIPTOR,
    public: Descriptor = task_pb2.Task.DESCRIPTOR,
    result: Descriptor = task_pb2.TaskResult.DESCRIPTOR,
    update: Descriptor = task_pb2.TaskUpdate.DESCRIPTOR,
    config: Descriptor = providers_pb2.ProviderConfig.DESCRIPTOR,
) -> Declarations:
    """Read the contract.

    Args:
        task_types: The enum of task types.
        providers: The enum of providers.
        capabilities: The enum of capabilities.
        create: What callers ask for.
        public: What callers are shown.
        result: What workers report.
        update: What may be changed.
        config: Settings of providers.

    Raises:
        CatalogError: It contradicts itself.
    """
    members = {field.name: field for field in update.fields}
    by_type = {name: field for name, field in members.items() if _facts(field).change == options_pb2.CHANGE_BY_TYPE}
    changes = {name: _change(field) for name, field in members.items() if name not in by_type}
    types = {
        spec.name: spec
        for name, number, facts in _declared(task_types, options_pb2.task_type)
        for spec in [_task_type(name, number, facts, (create, public, result), by_type)]
    }
    found = {
        name: _provider(name, number, facts, config)
        for name, number, facts in _declared(providers, options_pb2.provider)
    }
    _unique("detail", [spec.detail for spec in types.values()])
    _unique("config", [spec.config for spec in found.values()])
    _check_names(types, found, value_names(capabilities).values())
    return Declarations(MappingProxyType(types), MappingProxyType(found), MappingProxyType(changes), frozenset(by_type))


def _declared(enum: EnumDescriptor, extension: Any) -> Iterator[tuple[str, int, Any]]:
    names = value_names(enum)
    for value in enum.values:
        if not value.number:
            continue
        options = value.GetOptions()
        if not options.HasExtension(extension):
            raise CatalogError(f"{value.name} declares nothing of itself")
        yield names[value.number], value.number, options.Extensions[extension]


def _task_type(
    name: str, number: int, facts: Any, owners: tuple[Descriptor, ...], by_type: Mapping[str, FieldDescriptor]
) -> TaskTypeSpec:
    create, public, reported = (_detail(owner, facts.detail, name) for owner in owners)
    if reported is not public:
        raise CatalogError(f"{name}: workers report another message than callers are shown")
    if not facts.prefix or facts.expected_seconds <= 0 or facts.timeout_seconds <= 0:
        raise CatalogError(f"{name}: a task type has a prefix and seconds above 0")
    inputs = tuple(
        _input(field, _facts(field).input, create, public) for field in public.fields if _facts(field).HasField("input")
    )
    _check_sources(create, inputs)
    _unique(f"{name} input", [one.name for one in inputs])
    return TaskTypeSpec(
        name=name,
        number=cast("enums_pb2.TaskType.ValueType", number),
        detail=facts.detail,
        prefix=facts.prefix,
        expected_seconds=facts.expected_seconds,
        timeout_seconds=facts.timeout_seconds,
        internal=facts.internal,
        default_provider=facts.default_provider,
        inputs=inputs,
        outputs=tuple(
            OutputSpec(field.name, _media(_facts(field).output.media, field), field.is_repeated)
            for field in public.fields
            if _facts(field).HasField("output")
        ),
        adapters=tuple(field.name for field in create.fields if _facts(field).adapter),
        seeds=tuple(field.name for field in create.fields if _facts(field).seed),
        seed_in_config=facts.seed_in_config,
        capabilities=MappingProxyType(
            {field.name: _facts(field).capability for field in create.fields if _facts(field).capability}
        ),
        changes=_own_changes(public, by_type),
        steered_by=_steering(name, facts.steered_by),
        needs=tuple(_need(field, facts, create) for field in create.fields for facts in _facts(field).needs),
    )


def _steering(name: str, message: str) -> Descriptor | None:
    if not message:
        return None
    known = {one.full_name: one for one in providers_pb2.DESCRIPTOR.message_types_by_name.values()}
    if message not in known:
        raise CatalogError(f"{name}: the contract of providers has no message {message!r}")
    return known[message]


def _need(field: FieldDescriptor, facts: Any, create: Descriptor) -> NeedSpec:
    if facts.where and facts.where not in create.fields_by_name:
        raise CatalogError(f"{field.full_name}: {create.full_name} has no {facts.where!r}")
    if facts.absent and (facts.values or not field.has_presence):
        raise CatalogError(f"{field.full_name}: what is needed where it is absent depends on no value of it")
    return NeedSpec(field.name, facts.capability, frozenset(facts.values), facts.absent, facts.where or None)


def _detail(owner: Descriptor, field: str, name: str) -> Descriptor:
    detail = owner.oneofs_by_name["detail"]
    for one in detail.fields:
        if one.name == field and one.message_type is not None:
            return one.message_type
    raise CatalogError(f"{name}: {owner.full_name} has no detail {field!r}")


def _input(field: FieldDescriptor, facts: Any, create: Descriptor, public: Descriptor) -> InputSpec:
    where = field.full_name
    sources = tuple(_source(create, name, where) for name in facts.sources)
    kept = [one for one in sources if Form.PATH in one.accepts and one.many == field.is_repeated]
    if not facts.name or not kept:
        raise CatalogError(f"{where}: an input has a name, and a source that holds its path")
    if any(one.many and not field.is_repeated for one in sources):
        raise CatalogError(f"{where}: a list among its sources, yet it is none")
    if facts.first and (facts.first not in public.fields_by_name or not field.is_repeated):
        raise CatalogError(f"{where}: no field {facts.first!r} for its first item")
    return InputSpec(
        name=facts.name,
        media=_media(facts.media, field),
        public=field.name,
        many=field.is_repeated,
        first=facts.first or None,
        sources=sources,
        exclusive=facts.exclusive,
        kept=kept[0],
    )


def _source(create: Descriptor, name: str, where: str) -> SourceSpec:
    field = create.fields_by_name.get(name)
    if field is None or not _facts(field).accepts:
        raise CatalogError(f"{where}: {create.full_name} has no {name!r} that accepts a file")
    forms = value_names(options_pb2.Form.DESCRIPTOR)
    accepts = frozenset(Form(forms[number]) for number in _facts(field).accepts)
    return SourceSpec(name, accepts, field.is_repeated)


def _check_sources(create: Descriptor, inputs: tuple[InputSpec, ...]) -> None:
    named = [source.field for one in inputs for source in one.sources]
    _unique(f"{create.full_name} source", named)
    for field in create.fields:
        if _facts(field).accepts and field.name not in named:
            raise CatalogError(f"{field.full_name} accepts a file, yet no input names it")


def _own_changes(public: Descriptor, by_type: Mapping[str, FieldDescriptor]) -> Mapping[str, Change]:
    for field in public.fields:
        member = by_type.get(field.name)
        if (_facts(field).change != options_pb2.CHANGE_UNSPECIFIED) != (member is not None):
            raise CatalogError(f"{field.full_name}: who may change it is said where, and only where, an update has it")
        if member is not None and (member.type, member.is_repeated) != (field.type, field.is_repeated):
            raise CatalogError(f"{field.full_name}: an update has it as another kind")
    return MappingProxyType({field.name: _change(field) for field in public.fields if field.name in by_type})


def _change(field: FieldDescriptor) -> Change:
    name = value_names(options_pb2.Change.DESCRIPTOR).get(_facts(field).change, "")
    if name not in Change.__members__:
        raise CatalogError(f"{field.full_name}: it does not say who may change it")
    return Change(name)


def _media(number: Any, field: FieldDescriptor) -> MediaKind:
    name = value_names(options_pb2.Media.DESCRIPTOR).get(number, "")
    if name not in MediaKind.__members__:
        raise CatalogError(f"{field.full_name}: it does not say what its file is")
    return MediaKind(name)


def _provider(name: str, number: int, facts: Any, config: Descriptor) -> ProviderSpec:
    if not facts.queue or facts.config not in config.fields_by_name:
        raise CatalogError(f"{name}: a provider has a queue, and settings in {config.full_name}")
    _unique(f"{name} task type", [task.task_type for task in facts.tasks])
    tasks = MappingProxyType({task.task_type: frozenset(task.capabilities) for task in facts.tasks})
    value = cast("enums_pb2.ProviderType.ValueType", number)
    own: Any = config.fields_by_name[facts.config].message_type
    named = [field.name for field in own.fields if _facts(field).service_task_id]
    if len(named) > 1 or (facts.counted_by and facts.counted_by not in own.fields_by_name):
        raise CatalogError(f"{name}: its settings name a request at it twice, or lack the field that it counts by")
    return ProviderSpec(name, value, facts.queue, facts.config, tasks, (named or [None])[0], facts.counted_by or None)


def _check_names(
    types: Mapping[str, TaskTypeSpec], providers: Mapping[str, ProviderSpec], capabilities: Collection[str]
) -> None:
    for provider in providers.values():
        for unknown in sorted((provider.task_types - set(types)) | (provider.capabilities() - set(capabilities))):
            raise CatalogError(f"{provider.name}: the contract has no {unknown!r}")
    for spec in types.values():
        for unknown in sorted(
            {*spec.capabilities.values(), *(need.capability for need in spec.needs)} - set(capabilities)
        ):
            raise CatalogError(f"{spec.name}: the contract has no capability {unknown!r}")
        default = providers.get(spec.default_provider)
        if default is None or spec.name not in default.tasks:
            raise CatalogError(f"{spec.name}: its default provider {spec.default_provider!r} does not execute it")


def _unique(what: str, names: list[str]) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise CatalogError(f"{what} {twice[0]!r} is declared twice")


def _facts(field: FieldDescriptor) -> Any:
    return field.GetOptions().Extensions[options_pb2.task_field]


DECLARED = load()
TASK_TYPES = DECLARED.task_types
PROVIDERS = DECLARED.providers
OWN_PROVIDERS = tuple(name for name, spec in PROVIDERS.items() if spec.queue == PROVIDERS["LOCAL"].queue)
"""Providers whose work this mesh does itself: LOCAL, and pipelines that tasks name as a provider. Nobody is called."""
_BY_NUMBER: dict[int, TaskTypeSpec] = {spec.number: spec for spec in TASK_TYPES.values()}
_BY_DETAIL = {spec.detail: spec for spec in TASK_TYPES.values()}
_PROVIDER_BY_NUMBER: dict[int, ProviderSpec] = {spec.number: spec for spec in PROVIDERS.values()}
_PROVIDER_BY_CONFIG = {spec.config: spec for spec in PROVIDERS.values()}


def type_numbered(number: int) -> TaskTypeSpec:
    """Return the task type of a number off the wire.

    Raises:
        KeyError: The contract has none.
    """
    return _BY_NUMBER[number]


def type_of_detail(detail: str | None) -> TaskTypeSpec | None:
    """Return the task type whose field in `detail` this is; None where none is set, or a newer contract's."""
    return _BY_DETAIL.get(detail or "")


def type_name(number: int) -> str:
    """Return the spelling of a task type's number off the wire; `KeyError` where the contract has none."""
    return _BY_NUMBER[number].name


def provider_numbered(number: int) -> ProviderSpec:
    """Return the provider of a number off the wire; `KeyError` where the contract has none."""
    return _PROVIDER_BY_NUMBER[number]


def provider_of_config(config: providers_pb2.ProviderConfig) -> ProviderSpec | None:
    """Return the provider whose settings these are; None where none are set."""
    return _PROVIDER_BY_CONFIG.get(config.WhichOneof("config") or "")
