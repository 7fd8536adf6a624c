"""A route's request message from an HTTP request: path, query, body and update mask."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import orjson
from google.protobuf import message_factory
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from meshkit.spelling import ContractError
from meshkit.transcoding.codec import Codecs, MessageCodec
from meshkit.transcoding.decoding import Decoding, Loc, Violation
from meshkit.transcoding.errors import RefusedRequestError
from meshkit.transcoding.options import json_name, nested, prints_null
from meshkit.transcoding.routes import Route
from meshkit.transcoding.scalars import BadValueError, text_converter, well_known

Pairs = Sequence[tuple[str, str]]
_TextSet = Callable[[Any, list[str]], None]


def _text_setter(one: FieldDescriptor) -> _TextSet:
    name = one.name
    if one.message_type is not None:
        known = well_known(one.message_type)
        if known is None or one.is_repeated:
            raise ContractError(f"{one.full_name}: its type has no place in a URL")
        fill = known[0]
        return lambda message, texts: fill(getattr(message, name), texts[-1])
    convert = text_converter(one)
    if one.is_repeated:
        return lambda message, texts: getattr(message, name).extend([convert(text) for text in texts])
    return lambda message, texts: setattr(message, name, convert(texts[-1]))


def _parameters(message: Descriptor, fields: Iterable[FieldDescriptor]) -> dict[str, _TextSet]:
    setters: dict[str, _TextSet] = {}
    for one in fields:
        if json_name(one) in setters:
            raise ContractError(f"{message.full_name}: two parameters are named {json_name(one)}")
        setters[json_name(one)] = _text_setter(one)
    return setters


class RequestDecoder:
    """Builds the request messages of one route."""

    def __init__(self, route: Route, codecs: Codecs) -> None:
        self._route = route
        self._make = message_factory.GetMessageClass(route.request)
        self._path = [(json_name(one), _text_setter(one)) for one in route.path_fields]
        self._query = _parameters(route.request, route.query_fields())
        self._body: MessageCodec | None = None
        if route.has_body:
            self._body = codecs.of(nested(route.body) if route.body is not None else route.request)

    @property
    def has_body(self) -> bool:
        """Whether the request's content is read."""
        return self._body is not None

    def decode(self, values: tuple[str, ...], query: Pairs, content: bytes, decoding: Decoding) -> Message:
        """Build the request message.

        Args:
            values: Values of the path variables.
            query: Query parameters, decoded.
            content: The request's content.
            decoding: How strict to be; takes the uploads found.

        Raises:
            RefusedRequestError: it is malformed; every violation is named.
        """
        message = self._make()
        if self._body is not None:
            self._decode_body(self._body, message, content, decoding)
        for (name, set_), value in zip(self._path, values, strict=True):
            _apply(set_, message, [value], ("path", name), decoding)
        if query:
            self._decode_query(message, query, decoding)
        if decoding.violations:
            raise RefusedRequestError(decoding.violations)
        return message

    def _decode_query(self, message: Message, query: Pairs, decoding: Decoding) -> None:
        given: dict[str, list[str]] = {}
        for name, text in query:
            given.setdefault(name, []).append(text)
        for name, texts in given.items():
            set_ = self._query.get(name)
            if set_ is not None:
                _apply(set_, message, texts, ("query", name), decoding)
            else:
                decoding.pass_over(("query", name), self._query)

    def _decode_body(self, codec: MessageCodec, message: Message, content: bytes, decoding: Decoding) -> None:
        data: Any = {}
        if content.strip():
            try:
                data = orjson.loads(content)
            except orjson.JSONDecodeError as error:
                raise RefusedRequestError(
                    [Violation(("body", error.pos), f"JSON decode error: {error.msg}", "json_invalid")]
                ) from None
        elif self._route.body is not None and self._route.method != "DELETE":
            decoding.fail(("body",), "Field required", "missing")
            return
        target = getattr(message, self._route.body.name) if self._route.body is not None else message
        codec.decode(target, data, ("body",), decoding)
        if self._route.mask and type(data) is dict:
            mask = getattr(message, self._route.mask)
            mask.SetInParent()
            mask.paths.extend(codec.paths(data))


def _apply(set_: _TextSet, message: Message, texts: list[str], loc: Loc, decoding: Decoding) -> None:
    try:
        set_(message, texts)
    except BadValueError as bad:
        decoding.bad(loc, bad)


class ResponseEncoder:
    """Turns the response messages of one route into JSON, or into the file that the route serves."""

    def __init__(self, route: Route, codecs: Codecs) -> None:
        self._file = route.response_body.name if route.serves_file and route.response_body is not None else ""
        self._encode = operator.attrgetter(f"{self._file}.data") if self._file else self._encoder(route, codecs)

    @staticmethod
    def _encoder(route: Route, codecs: Codecs) -> Callable[[Any], Any]:
        one = route.response_body
        if one is None:
            return codecs.of(route.response).encode
        print_ = codecs.field_printer(one)
        name = one.name
        if print_ is None:
            return operator.attrgetter(name)
        if one.is_repeated and prints_null(one):
            return lambda message: print_(getattr(message, name)) if getattr(message, name) else None
        return lambda message: print_(getattr(message, name))

    def encode(self, message: Message) -> bytes:
        """Return the content of the response."""
        return bytes(self._encode(message)) if self._file else orjson.dumps(self._encode(message))

    def media_type(self, message: Any) -> str:
        """Return the media type of a response that is a file; empty for JSON."""
        return str(getattr(message, self._file).content_type) if self._file else ""
