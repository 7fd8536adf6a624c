"""JSON objects to messages and back, compiled to closures once per message type.

Decoding collects every violation instead of stopping at the first. Locations are those of the JSON, so that what the
codec finds and what a service finds read alike.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from atelier.options.v1 import options_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from meshkit import freeform
from meshkit.spelling import ContractError
from meshkit.transcoding.decoding import Decoding, LiftedFiles, Loc, Upload, looks_remote
from meshkit.transcoding.options import (
    Flattened,
    field_json,
    flattened,
    is_map,
    is_repeated,
    json_name,
    nested,
    plain_fields,
    prints_null,
    prints_when_unset,
)
from meshkit.transcoding.scalars import (
    BadValueError,
    Convert,
    Fill,
    Json,
    converter,
    listed,
    printer,
    text_converter,
    well_known,
)

Encode = Callable[[Any], Json]
_STRUCT = "google.protobuf.Struct"


# (message, value, location of the parent object, decoding, parent object)
_Set = Callable[[Any, Json, Loc, Decoding, dict[str, Json]], None]


def _scalar_setter(name: str, member: str, convert: Convert) -> _Set:
    def set_(message: Any, value: Json, loc: Loc, decoding: Decoding, _: dict[str, Json]) -> None:
        try:
            setattr(message, name, convert(value))
        except BadValueError as bad:
            decoding.bad((*loc, member), bad)

    return set_


def _upload_setter(name: str, member: str, convert: Convert) -> _Set:
    plain = _scalar_setter(name, member, convert)

    def set_(message: Any, value: Json, loc: Loc, decoding: Decoding, siblings: dict[str, Json]) -> None:
        if type(value) is str and len(value) > decoding.upload_threshold and not looks_remote(value):
            decoding.uploads.append(Upload((*loc, member), value, lambda text: setattr(message, name, text)))
        else:
            plain(message, value, loc, decoding, siblings)

    return set_


def _filler(known: Descriptor, fill: Fill) -> Callable[[Any, Json, Decoding], None]:
    """Return what fills a well-known message; one of a free form is measured before it is built."""
    if known.full_name not in freeform.TYPES:
        return lambda target, value, _: fill(target, value)

    def fill_measured(target: Any, value: Json, decoding: Decoding) -> None:
        limits = decoding.free_form
        fault = freeform.json_fault(value, limits)
        if fault is None:
            fill(target, value)
            fault = freeform.size_fault(target, limits)
        if fault is not None:
            raise BadValueError(fault.message, fault.kind)

    return fill_measured


def _fill_setter(name: str, member: str, fill: Callable[[Any, Json, Decoding], None]) -> _Set:
    def set_(message: Any, value: Json, loc: Loc, decoding: Decoding, _: dict[str, Json]) -> None:
        try:
            fill(getattr(message, name), value, decoding)
        except BadValueError as bad:
            decoding.bad((*loc, member), bad)

    return set_


def _list_setter(name: str, member: str, add: Callable[[Any, Json, Loc, Decoding, int], None]) -> _Set:
    def set_(message: Any, value: Json, loc: Loc, decoding: Decoding, _: dict[str, Json]) -> None:
        here = (*loc, member)
        if type(value) is not list:
            decoding.fail(here, "Input should be a valid list", "list_type")
            return
        target = getattr(message, name)
        for index, item in enumerate(value):
            try:
                add(target, item, (*here, index), decoding, index)
            except BadValueError as bad:
                decoding.bad((*here, index), bad)

    return set_


def _map_setter(name: str, member: str, key: Convert, put: Callable[[Any, Any, Json, Loc, Decoding], None]) -> _Set:
    def set_(message: Any, value: Json, loc: Loc, decoding: Decoding, _: dict[str, Json]) -> None:
        here = (*loc, member)
        if type(value) is not dict:
            decoding.fail(here, "Input should be a valid dictionary", "dict_type")
            return
        target = getattr(message, name)
        for text, item in value.items():
            try:
                put(target, key(text), item, (*here, text), decoding)
            except BadValueError as bad:
                decoding.bad((*here, text), bad)

    return set_


class MessageCodec:
    """Decodes JSON objects into one message type and encodes its messages as JSON objects."""

    __slots__ = ("_blank", "_blanks", "_codecs", "_details", "_flat", "_printers", "_setters", "_tables", "descriptor")

    def __init__(self, descriptor: Descriptor, codecs: Codecs) -> None:
        self.descriptor = descriptor
        self._codecs = codecs
        self._flat = flattened(descriptor)
        self._setters: dict[str, tuple[_Set | None, bool]] = {}
        self._tables: dict[str, tuple[str, dict[str, tuple[_Set | None, bool]]]] = {}
        # What an object shows while nothing is set, by the selected variant where there are variants; and how the
        # value of a field that is set is shown, by its number.
        self._blank: dict[str, Json] = {}
        self._blanks: dict[str | None, dict[str, Json]] = {}
        self._printers: dict[int, tuple[str, Encode | None]] = {}
        self._details: dict[str, MessageCodec] = {}

    def compile(self) -> None:
        """Build the tables; apart from construction, so that message types may contain each other."""
        for one in plain_fields(self.descriptor):
            member = json_name(one)
            if member in self._setters:
                raise ContractError(f"{self.descriptor.full_name}: two members are named {member}")
            self._setters[member] = (self._setter(one), False)
            self._blank[member] = self._unset(one)
            self._printers[one.number] = (member, self._codecs.field_printer(one))
        if self._flat is not None:
            self._compile_variants(self._flat)

    def _compile_variants(self, flat: Flattened) -> None:
        self._blanks[None] = {flat.discriminator: None} | self._blank
        for value, variant in flat.variants.items():
            detail = nested(variant)
            if flattened(detail) is not None:
                raise ContractError(f"{detail.full_name}: a flattened variant contains another flattened oneof")
            inner = self._codecs.of(detail)
            inner.ensure()
            clash = {flat.discriminator, *self._setters} & set(inner._setters)  # noqa: SLF001 -- same class
            if clash or flat.discriminator in self._setters:
                raise ContractError(f"{variant.full_name}: members also named by its parent: {sorted(clash)}")
            table = dict(self._setters)
            table[flat.discriminator] = (None, False)
            table.update({name: (setter, True) for name, (setter, _) in inner._setters.items()})  # noqa: SLF001 -- its own kind
            self._tables[value] = (variant.name, table)
            self._details[variant.name] = inner
            self._blanks[variant.name] = {flat.discriminator: value} | self._blank | inner._blank  # noqa: SLF001 -- its own kind

    def ensure(self) -> None:
        """Compile, where that has not happened yet."""
        if not self._printers and not self._tables:
            self.compile()

    # -- decoding ------------------------------------------------------------------------------------------------

    def decode(self, message: Message, data: Json, loc: Loc, decoding: Decoding, fallback: Json = None) -> None:
        """Fill a message from a JSON object.

        Args:
            message: The message, empty.
            data: What should be an object.
            loc: Its location.
            decoding: Takes the violations.
            fallback: The discriminator's value where the object itself has none.
        """
        if type(data) is not dict:
            decoding.fail(loc, "Input should be a valid dictionary or object", "dict_type")
            return
        message.SetInParent()
        detail: Any = message
        table = self._setters
        noted = True
        if self._flat is not None:
            chosen = self._choose(self._flat, data, loc, decoding, fallback)
            if chosen is not None:
                name, table = chosen
                detail = getattr(message, name)
                detail.SetInParent()
            else:
                noted = False  # which members are known is not known
        for key, value in data.items():
            entry = table.get(key)
            if entry is None:
                if noted:
                    decoding.pass_over((*loc, key), table)
                continue
            setter, in_detail = entry
            if value is not None and setter is not None:
                setter(detail if in_detail else message, value, loc, decoding, data)

    def _choose(
        self, flat: Flattened, data: dict[str, Json], loc: Loc, decoding: Decoding, fallback: Json
    ) -> tuple[str, dict[str, tuple[_Set | None, bool]]] | None:
        value = data.get(flat.discriminator)
        if value is None:
            value = fallback
        chosen = self._tables.get(value) if type(value) is str else None
        if chosen is None and (value is not None or flat.required or data):
            kind, verb = ("missing", "Field required: it should be") if value is None else ("enum", "Input should be")
            decoding.fail((*loc, flat.discriminator), f"{verb} {listed(flat.public)}", kind)
        return chosen

    def paths(self, data: Mapping[str, Json]) -> list[str]:
        """Return the field mask of an update: the proto paths of the members present, null ones included."""
        names = self._codecs.field_names(self.descriptor)
        flat = self._flat
        value = data.get(flat.discriminator) if flat is not None else None
        if flat is not None and type(value) is str and value in flat.variants:
            variant = flat.variants[value]
            inner = self._codecs.field_names(nested(variant))
            names = names | {member: f"{variant.name}.{name}" for member, name in inner.items()}
        return [names[key] for key in data if key in names]

    def _setter(self, one: FieldDescriptor) -> _Set | None:
        """Return what sets a field; None for a member that requests may name and that is ignored there."""
        options = field_json(one)
        if options.read_only:
            return None
        name, member = one.name, json_name(one)
        if is_map(one):
            return self._map(one, name, member)
        if is_repeated(one):
            return self._list(one, name, member, upload=options.upload)
        if one.message_type is None:
            make = _upload_setter if options.upload else _scalar_setter
            return make(name, member, converter(one))
        known = well_known(nested(one))
        if known is not None:
            fill = _fill_setter(name, member, _filler(nested(one), known[0]))
            return self._holder(options, name, member, fill) if options.holds else fill
        return self._nested(one, name, member, options.discriminator_from)

    def _nested(self, one: FieldDescriptor, name: str, member: str, discriminator_from: str) -> _Set:
        decode = self._codecs.of(nested(one)).decode

        def set_(message: Any, value: Json, loc: Loc, decoding: Decoding, siblings: dict[str, Json]) -> None:
            fallback = siblings.get(discriminator_from) if discriminator_from else None
            decode(getattr(message, name), value, (*loc, member), decoding, fallback)

        return set_

    @property
    def members_of_all(self) -> Collection[str]:
        """Members of the message and of each of its variants."""
        return dict.fromkeys([*self._setters, *(name for _, table in self._tables.values() for name in table)])

    @property
    def uploads(self) -> frozenset[str]:
        """Members that carry a file as text, or a list of them."""
        return frozenset(json_name(one) for one in plain_fields(self.descriptor) if field_json(one).upload)

    def _holder(self, options: options_pb2.FieldJson, name: str, member: str, fill: _Set) -> _Set:
        pool = self.descriptor.file.pool
        held = self._codecs.of(pool.FindMessageTypeByName(options.holds))
        otherwise = options.holds_otherwise and self._codecs.of(pool.FindMessageTypeByName(options.holds_otherwise))
        common = held._setters | (otherwise._setters if otherwise else {})  # noqa: SLF001 -- same class

        def set_(message: Any, value: Json, loc: Loc, decoding: Decoding, siblings: dict[str, Json]) -> None:
            chosen = siblings.get(options.discriminator_from) if options.discriminator_from else None
            variant, known = held._tables.get(str(chosen), ("", held._setters))  # noqa: SLF001 -- same class
            holding = held._details[variant] if variant else None  # noqa: SLF001 -- same class
            if chosen is None and otherwise:
                holding, known = otherwise, common
            lifted = LiftedFiles((*loc, member), decoding)
            if type(value) is dict and holding is not None:
                value = lifted.without_files(value, holding.uploads)
            fill(message, value, loc, decoding, siblings)
            lifted.hand_over(getattr(message, name))
            # Where no sibling selects the variant, a member may belong to any of them.
            names: Collection[str] = known if options.discriminator_from else held.members_of_all
            for key in value if type(value) is dict else ():
                if key not in names:
                    decoding.pass_over((*loc, member, key), names, others=True)

        return set_

    def _list(self, one: FieldDescriptor, name: str, member: str, *, upload: bool) -> _Set:
        if one.message_type is None:
            convert = converter(one)

            def add_scalar(target: Any, item: Json, loc: Loc, decoding: Decoding, index: int) -> None:
                if upload and type(item) is str and len(item) > decoding.upload_threshold and not looks_remote(item):
                    target.append("")
                    decoding.uploads.append(Upload(loc, item, lambda text: target.__setitem__(index, text)))
                else:
                    target.append(convert(item))

            return _list_setter(name, member, add_scalar)
        known = well_known(one.message_type)
        if known is not None:
            fill = _filler(one.message_type, known[0])

            def add_known(target: Any, item: Json, _loc: Loc, decoding: Decoding, _index: int) -> None:
                fill(target.add(), item, decoding)

            return _list_setter(name, member, add_known)
        decode = self._codecs.of(nested(one)).decode

        def add_message(target: Any, item: Json, loc: Loc, decoding: Decoding, _index: int) -> None:
            decode(target.add(), item, loc, decoding)

        return _list_setter(name, member, add_message)

    def _map(self, one: FieldDescriptor, name: str, member: str) -> _Set:
        key = self._codecs.map_key(one)
        value_field = nested(one).fields_by_name["value"]
        if value_field.message_type is None:
            convert = converter(value_field)

            def put_scalar(target: Any, at: Any, item: Json, _loc: Loc, _decoding: Decoding) -> None:
                target[at] = convert(item)

            return _map_setter(name, member, key, put_scalar)
        known = well_known(value_field.message_type)
        if known is not None:
            fill = _filler(value_field.message_type, known[0])

            def put_known(target: Any, at: Any, item: Json, _loc: Loc, decoding: Decoding) -> None:
                fill(target[at], item, decoding)

            return _map_setter(name, member, key, put_known)
        decode = self._codecs.of(value_field.message_type).decode

        def put_message(target: Any, at: Any, item: Json, loc: Loc, decoding: Decoding) -> None:
            decode(target[at], item, loc, decoding)

        return _map_setter(name, member, key, put_message)

    # -- encoding ------------------------------------------------------------------------------------------------

    def encode(self, message: Any) -> dict[str, Json]:
        """Return a message as the JSON object that the reference documents: every member, unset ones as null.

        The object is for reading: empty lists and maps in it are shared between answers.
        """
        if self._flat is None:
            out = self._blank.copy()
        else:
            selected = message.WhichOneof(self._flat.name)
            out = self._blanks[selected].copy()
            if selected is not None:
                self._details[selected]._write(out, getattr(message, selected))  # noqa: SLF001 -- same class
        self._write(out, message)
        return out

    def _write(self, out: dict[str, Json], message: Any) -> None:
        printers = self._printers
        # What is set is a fraction of what there is; asking each field whether it is takes several times longer.
        for one, value in message.ListFields():
            found = printers.get(one.number)
            if found is not None:
                member, print_ = found
                out[member] = value if print_ is None else print_(value)

    def _unset(self, one: FieldDescriptor) -> Json:
        """Return what a member shows whose field is not set."""
        if one.is_repeated:
            return None if prints_null(one) else _empty(is_map(one))
        if one.message_type is not None:
            return _empty(one.message_type.full_name == _STRUCT) if prints_when_unset(one) else None
        if one.has_presence:
            return None
        print_ = self._codecs.value_printer(one)
        return one.default_value if print_ is None else print_(one.default_value)


def _empty(object_: bool) -> Json:  # noqa: FBT001 -- says which of two
    return {} if object_ else []


class Codecs:
    """The codecs of every message type that was asked for."""

    def __init__(self) -> None:
        self._codecs: dict[str, MessageCodec] = {}

    def of(self, descriptor: Descriptor) -> MessageCodec:
        """Return the codec of a message type, compiling it on first use.

        Raises:
            ContractError: the type cannot be presented as its options say.
        """
        codec = self._codecs.get(descriptor.full_name)
        if codec is None:
            codec = self._codecs[descriptor.full_name] = MessageCodec(descriptor, self)
            codec.ensure()
        return codec

    @staticmethod
    def field_names(descriptor: Descriptor) -> dict[str, str]:
        """Return proto field names by JSON member, of members that a request may set."""
        return {json_name(one): one.name for one in plain_fields(descriptor) if not field_json(one).read_only}

    @staticmethod
    def map_key(one: FieldDescriptor) -> Convert:
        """Return what turns an object's key into a key of a map field."""
        return text_converter(nested(one).fields_by_name["key"])

    def value_printer(self, one: FieldDescriptor) -> Encode | None:
        """Return what prints one value of a field, None where the value is JSON already."""
        if one.message_type is None:
            return printer(one)
        known = well_known(one.message_type)
        return known[1] if known is not None else self.of(one.message_type).encode

    def field_printer(self, one: FieldDescriptor) -> Encode | None:
        """Return what prints all that a field holds, a list or a map as a whole; None where it is JSON already."""
        if is_map(one):
            print_ = self.value_printer(nested(one).fields_by_name["value"])
            if print_ is None:
                return lambda items: {_key(key): value for key, value in items.items()}
            return lambda items: {_key(key): print_(value) for key, value in items.items()}
        print_one = self.value_printer(one)
        if one.is_repeated:
            return list if print_one is None else lambda items: [print_one(item) for item in items]
        return print_one


def _key(key: Any) -> str:
    if key is True or key is False:
        return "true" if key else "false"
    return str(key)
