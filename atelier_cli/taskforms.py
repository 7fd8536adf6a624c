"""What the contract says of a task type, as a command line needs it: its prompt, its files, its other members."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Final

from atelier.options.v1 import options_pb2
from atelier.tasks.v1 import task_pb2
from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorSet

from meshkit.catalog import PROVIDERS, TASK_TYPES, Form, InputSpec, TaskTypeSpec
from meshkit.spelling import enum_names
from meshkit.transcoding.schemas import Comments

PROMPT: Final = "prompt"
# A service of the mesh sets it.
_NOT_ASKED: Final = frozenset({PROMPT, "workflow_id"})
# What a member's name says of the form of its files, which a command line finds out by itself.
_FORMS: Final = ("_data", "_url", "_paths")


@dataclass(frozen=True, slots=True)
class FileMember:
    """An image, or a list of them, that a type takes.

    Attributes:
        input: The input of the contract.
        name: Its name on the command line.
        required: Whether a task needs it.
        most: Images at most.
    """

    input: InputSpec
    name: str
    required: bool
    most: int

    def member_for(self, form: Form) -> str | None:
        """Return the member that takes a file in a form; None where none does, or only one at a time of many."""
        kept = self.input.kept
        if form in kept.accepts:
            return kept.field
        others = (one.field for one in self.input.sources if form in one.accepts and one.many == kept.many)
        return next(others, None)


@dataclass(frozen=True, slots=True)
class PlainMember:
    """Any other member.

    Attributes:
        name: Its name.
        kind: `int`, `float`, `bool`, `str` or `dict`.
        choices: The texts that it takes, where they are few.
        help: What it is, in one sentence.
        many: Whether it is a list.
    """

    name: str
    kind: type
    choices: tuple[str, ...]
    help: str
    many: bool


@dataclass(frozen=True, slots=True)
class TaskForm:
    """A task type as a form to fill in.

    Attributes:
        spec: The type.
        help: What it does, in one sentence.
        prompted: Whether it takes a prompt.
        seeded: Whether its result follows from a seed, in a member of its own or in its `config`.
        subject: What it works on, where it needs that.
        images: Further images that it takes.
        members: Its other members.
    """

    spec: TaskTypeSpec
    help: str
    prompted: bool
    seeded: bool
    subject: FileMember | None
    images: tuple[FileMember, ...]
    members: tuple[PlainMember, ...]


@cache
def form_of(name: str) -> TaskForm:
    """Return the form of a task type.

    Raises:
        KeyError: The contract has none of that name.
    """
    spec = TASK_TYPES[name]
    create = _message(task_pb2.CreateTask.DESCRIPTOR, spec)
    public = _message(task_pb2.Task.DESCRIPTOR, spec)
    taken = [_file_member(one, create, public) for one in spec.inputs]
    subject = next((one for one in taken if one.required), None)
    sources = {source.field for one in spec.inputs for source in one.sources}
    comments = _comments()
    return TaskForm(
        spec=spec,
        help=comments.of(f"atelier.tasks.v1.TASK_TYPE_{name}"),
        prompted=PROMPT in create.fields_by_name,
        seeded=bool(spec.seeds) or "SEED" in PROVIDERS[spec.default_provider].tasks[name],
        subject=subject,
        images=tuple(one for one in taken if one is not subject),
        members=tuple(plain_members(create, sources)),
    )


def public_types() -> tuple[str, ...]:
    """Return the names of the task types that callers know, in the contract's order."""
    return tuple(name for name, spec in TASK_TYPES.items() if not spec.internal)


def file_members(task_type: str) -> Mapping[str, InputSpec]:
    """Return the inputs of a type by each member that carries one."""
    spec = TASK_TYPES.get(task_type)
    return {source.field: one for one in (spec.inputs if spec else ()) for source in one.sources}


@cache
def _comments() -> Comments:
    return Comments(FileDescriptorSet.FromString((files("atelier") / "descriptors.binpb").read_bytes()))


def _message(owner: Descriptor, spec: TaskTypeSpec) -> Descriptor:
    message = owner.fields_by_name[spec.detail].message_type
    assert message is not None, "details are messages"
    return message


def _file_member(one: InputSpec, create: Descriptor, public: Descriptor) -> FileMember:
    name = one.kept.field
    for ending in _FORMS:
        name = name.removesuffix(ending)
    rules = create.fields_by_name[one.kept.field].GetOptions().Extensions[validate_pb2.field]
    shown = public.fields_by_name[one.public]
    required = bool(rules.repeated.min_items) if one.many else not shown.has_presence
    return FileMember(one, name, required, (rules.repeated.max_items or 64) if one.many else 1)


def plain_members(create: Descriptor, sources: Collection[str]) -> Iterator[PlainMember]:
    """Yield the members of a request that are no files.

    Args:
        create: The request's message.
        sources: Members to leave out, those of its files among them.
    """
    comments = _comments()
    for field in create.fields:
        options = field.GetOptions().Extensions[options_pb2.field]
        if field.name in sources or field.name in _NOT_ASKED or options.hidden:
            continue
        rules = field.GetOptions().Extensions[validate_pb2.field]
        choices = tuple(getattr(rules.string, "in"))
        if field.enum_type is not None:
            choices = tuple(enum_names(field.enum_type).by_name)
        text = comments.of(field.full_name)
        default = options.default_value
        if default:
            text = f"{text} [default: {default.strip(chr(34))}]"
        yield PlainMember(field.name, _kind(field), choices, text, bool(field.is_repeated))


def _kind(field: FieldDescriptor) -> type:
    kinds: dict[int, type[Any]] = {
        FieldDescriptor.CPPTYPE_INT32: int,
        FieldDescriptor.CPPTYPE_INT64: int,
        FieldDescriptor.CPPTYPE_DOUBLE: float,
        FieldDescriptor.CPPTYPE_BOOL: bool,
        FieldDescriptor.CPPTYPE_MESSAGE: dict,
    }
    return kinds.get(field.cpp_type, str)
