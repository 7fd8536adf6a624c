"""Which method answers an HTTP request: the `google.api.http` bindings of services, compiled.

Templates follow google/api/http.proto: literals, `*`, `**`, `{variable}`, `{variable=template}` and `:verb`. A literal
wins over a variable at every segment, so `/tasks/generation` is found before `/tasks/{task_id}`. A trailing slash makes
no difference. Two bindings that would answer the same request are an error at start.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from urllib.parse import unquote

from atelier.options.v1 import options_pb2
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor, ServiceDescriptor
from google.protobuf.descriptor_pb2 import MethodDescriptorProto

from meshkit.spelling import ContractError
from meshkit.transcoding.options import field_json, flattened, json_name, method_rule, nested

_TOKEN = re.compile(r"\{([a-z][a-z0-9_.]*)(?:=([^{}]+))?\}|([^{}/]+)")
_FILE = "google.api.HttpBody"
_PATTERNS = ("get", "put", "post", "delete", "patch")


@dataclass(frozen=True, slots=True)
class Variable:
    """A variable of a path: which segments it takes.

    Attributes:
        name: Proto path of the request field.
        start: Its first segment.
        end: One past its last; None where it takes the rest.
    """

    name: str
    start: int
    end: int | None


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed path template; `*` and `**` stand for themselves among the segments."""

    segments: tuple[str, ...]
    verb: str
    variables: tuple[Variable, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Route:
    """One HTTP binding of one method.

    Attributes:
        method: HTTP method.
        template: Path.
        rpc: The gRPC method.
        path_fields: Request field of each path variable.
        body: Request field that is the JSON body; None where the request is the body or there is none.
        has_body: Whether there is a body.
        response_body: Response field that is the JSON answer; None where the response is.
        mask: Name of the request's FieldMask that an update fills, empty where there is none.
        streaming: Whether the answer is a stream of messages.
        rule: Guard and presentation.
    """

    method: str
    template: Template
    rpc: MethodDescriptor
    path_fields: tuple[FieldDescriptor, ...]
    body: FieldDescriptor | None
    has_body: bool
    response_body: FieldDescriptor | None
    mask: str
    streaming: bool
    rule: options_pb2.MethodRule

    @property
    def request(self) -> Descriptor:
        """Type of the request."""
        return self.rpc.input_type

    @property
    def response(self) -> Descriptor:
        """Type of the response, or of one message of a stream."""
        return self.rpc.output_type

    @property
    def serves_file(self) -> bool:
        """Whether the answer is a file, a `google.api.HttpBody`, and no JSON."""
        body = self.response_body
        return body is not None and body.message_type is not None and body.message_type.full_name == _FILE

    @property
    def name(self) -> str:
        """What identifies the route in logs and metrics."""
        return f"{self.method} {self.template.text}"

    def query_fields(self) -> list[FieldDescriptor]:
        """Return the request fields that come as query parameters: neither in the path nor in the body, nor hidden."""
        if self.has_body and self.body is None:
            return []
        taken = {one.name for one in self.path_fields} | ({self.body.name} if self.body else set())
        return [
            one
            for one in self.request.fields
            if one.name not in taken and not field_json(one).hidden and not field_json(one).read_only
        ]


def parse_template(text: str) -> Template:
    """Parse a path template.

    Raises:
        ContractError: it is not one.
    """
    if not text.startswith("/"):
        raise ContractError(f"path {text!r} does not start with a slash")
    path, verb = text, ""
    tail = text.rpartition("/")[2].rpartition("}")[2]
    if ":" in tail:
        path, _, verb = text.rpartition(":")
    segments: list[str] = []
    variables: list[Variable] = []
    position, stripped = 0, path.strip("/")
    while position < len(stripped):
        match = _TOKEN.match(stripped, position)
        if match is None:
            raise ContractError(f"path {text!r} cannot be read at {stripped[position:]!r}")
        name, inner, literal = match.groups()
        if name is None:
            segments.append(literal)
        else:
            parts = (inner or "*").split("/")
            end = None if parts[-1] == "**" else len(segments) + len(parts)
            variables.append(Variable(name, len(segments), end))
            segments.extend(parts)
        position = match.end()
        if position < len(stripped):
            if stripped[position] != "/":
                raise ContractError(f"path {text!r} cannot be read at {stripped[position:]!r}")
            position += 1
    if "**" in segments[:-1]:
        raise ContractError(f"path {text!r} has ** before its end")
    return Template(tuple(segments), verb, tuple(variables), text)


def _http_rules(method: MethodDescriptor) -> list[HttpRule]:
    options = method.GetOptions()
    if not options.HasExtension(annotations_pb2.http):
        return []
    rule = options.Extensions[annotations_pb2.http]
    return [rule, *rule.additional_bindings]


def _request_field(message: Descriptor, path: str, owner: str) -> FieldDescriptor:
    found = message.fields_by_name.get(path)
    if found is None:
        raise ContractError(f"{owner}: {message.full_name} has no field {path}")
    return found


def compile_method(method: MethodDescriptor) -> list[Route]:
    """Return the routes of a method, none where it has no HTTP binding.

    Raises:
        ContractError: a binding names what does not exist.
    """
    routes = []
    proto = MethodDescriptorProto()
    method.CopyToProto(proto)
    for rule in _http_rules(method):
        if proto.client_streaming:
            raise ContractError(f"{method.full_name}: a stream of requests has no place in HTTP")
        pattern = rule.WhichOneof("pattern")
        if pattern == "custom":
            verb, path = rule.custom.kind.upper(), rule.custom.path
        elif pattern in _PATTERNS:
            verb, path = pattern.upper(), getattr(rule, pattern)
        else:
            raise ContractError(f"{method.full_name}: its binding has no path")
        template = parse_template(path)
        request, response = method.input_type, method.output_type
        body = None if rule.body in {"", "*"} else _request_field(request, rule.body, method.full_name)
        if body is not None and (body.message_type is None or body.is_repeated):
            raise ContractError(f"{method.full_name}: body {rule.body} is no message")
        routes.append(
            Route(
                method=verb,
                template=template,
                rpc=method,
                path_fields=tuple(_request_field(request, one.name, method.full_name) for one in template.variables),
                body=body,
                has_body=bool(rule.body),
                response_body=_request_field(response, rule.response_body, method.full_name)
                if rule.response_body
                else None,
                mask=_mask_field(request) if verb in {"PUT", "PATCH"} and rule.body else "",
                streaming=proto.server_streaming,
                rule=method_rule(method),
            )
        )
    return routes


def _mask_field(request: Descriptor) -> str:
    for one in request.fields:
        if one.message_type is not None and one.message_type.full_name == "google.protobuf.FieldMask":
            return one.name
    return ""


def compile_services(services: Iterable[ServiceDescriptor]) -> list[Route]:
    """Return the routes of every method of services, in the order of the contracts."""
    return [route for service in services for method in service.methods for route in compile_method(method)]


@dataclass(slots=True)
class _Node:
    literals: dict[str, _Node] = field(default_factory=dict)
    any: _Node | None = None
    # Routes that end here, and routes that take whatever follows, by verb (`:cancel`) and HTTP method.
    ends: dict[str, dict[str, Route]] = field(default_factory=dict)
    rests: dict[str, dict[str, Route]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Match:
    """A route and the values of its path variables, decoded, in the template's order."""

    route: Route
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WrongMethod:
    """The path exists, but not for the method asked; `allowed` are the ones it has."""

    allowed: tuple[str, ...]


class RouteTable:
    """Finds the route of a request."""

    def __init__(self, routes: Iterable[Route]) -> None:
        """Build the table.

        Raises:
            ContractError: two routes would answer the same request.
        """
        self.routes: tuple[Route, ...] = tuple(routes)
        self._root = _Node()
        self._verbs = {route.template.verb for route in self.routes} - {""}
        for route in self.routes:
            self._add(route)
        # A literal wins over a variable at every segment, so a path that is all literals needs no search.
        self._literal = {
            (route.method, route.template.text.strip("/")): Match(route, ())
            for route in self.routes
            if not route.template.variables and "*" not in route.template.segments[-1:]
        }

    def _add(self, route: Route) -> None:
        node = self._root
        for segment in route.template.segments:
            if segment == "**":
                self._claim(node.rests, route)
                return
            if segment == "*":
                node.any = node.any or _Node()
                node = node.any
            else:
                node = node.literals.setdefault(segment, _Node())
        self._claim(node.ends, route)

    @staticmethod
    def _claim(place: dict[str, dict[str, Route]], route: Route) -> None:
        methods = place.setdefault(route.template.verb, {})
        other = methods.setdefault(route.method, route)
        if other is not route:
            raise ContractError(
                f"{route.name} is bound by {other.rpc.full_name} ({other.name}) and by {route.rpc.full_name}"
            )

    def match(self, method: str, raw_path: str) -> Match | WrongMethod | None:
        """Find the route of a request.

        Args:
            method: HTTP method.
            raw_path: Path as it came, still percent-encoded, so that an encoded slash stays within its segment.

        Returns:
            The route, or what methods the path has, or None where there is no such path.
        """
        bare = raw_path[1:].rstrip("/")
        literal = self._literal.get((method, bare))
        if literal is not None:
            return literal
        raw = bare.split("/")
        verb = ""
        if self._verbs and ":" in raw[-1]:
            last, _, candidate = raw[-1].rpartition(":")
            if candidate in self._verbs:
                raw, verb = [*raw[:-1], last], candidate
        segments = [unquote(one) if "%" in one else one for one in raw]
        search = _Search(method, verb, segments)
        route = search.find(self._root, 0)
        if route is not None:
            return Match(route, tuple("/".join(segments[one.start : one.end]) for one in route.template.variables))
        return WrongMethod(tuple(sorted(search.allowed))) if search.allowed else None


@dataclass(slots=True)
class _Search:
    """One walk through the table; `allowed` gathers what the path has where the method asked is not among it."""

    method: str
    verb: str
    segments: list[str]
    allowed: set[str] = field(default_factory=set)

    def find(self, node: _Node, at: int) -> Route | None:
        if at == len(self.segments):
            return self._pick(node.ends)
        segment = self.segments[at]
        literal = node.literals.get(segment)
        found = self.find(literal, at + 1) if literal is not None else None
        if found is None and node.any is not None and segment:
            found = self.find(node.any, at + 1)
        if found is None and node.rests and any(self.segments[at:]):
            found = self._pick(node.rests)
        return found

    def _pick(self, place: Mapping[str, dict[str, Route]]) -> Route | None:
        methods = place.get(self.verb, {})
        found = methods.get(self.method)
        if found is None and self.method == "HEAD":
            # GET without its content, except where that never ends.
            found = methods.get("GET")
            found = None if found is None or found.streaming else found
        if found is None:
            self.allowed.update(methods)
        return found


def loc_of(route: Route, path: str) -> tuple[str | int, ...]:
    """Translate the proto path of a violation into the location that the caller knows.

    Args:
        route: The route of the request.
        path: Dotted path in the request message, such as `task.generation.steps[0].id`.
    """
    elements = _elements(path)
    head = elements[0] if elements else ""
    if head in {one.name for one in route.path_fields}:
        return ("path", *_members(route.request, elements))
    if route.body is not None and head == route.body.name:
        return ("body", *_members(nested(route.body), elements[1:]))
    if (route.has_body and route.body is None) or not elements:
        return ("body" if route.has_body else "query", *_members(route.request, elements))
    return ("query", *_members(route.request, elements))


_PATH_ELEMENT = re.compile(r'\.?([A-Za-z_][\w]*)|\[(?:"((?:[^"\\]|\\.)*)"|([^\]"]*))\]')


def _elements(path: str) -> list[str | int]:
    found: list[str | int] = []
    for name, key, index in _PATH_ELEMENT.findall(path):
        if name:
            found.append(name)
        elif index:
            found.append(int(index) if index.lstrip("-").isdigit() else index)
        else:
            found.append(re.sub(r"\\(.)", r"\1", key))
    return found


def _members(message: Descriptor, elements: list[str | int]) -> list[str | int]:
    """Return the JSON members that proto path elements lead through."""
    found: list[str | int] = []
    current: Descriptor | None = message
    for element in elements:
        # Under an index, a map's key or a free-form value the elements are JSON already.
        one = current.fields_by_name.get(element) if current is not None and isinstance(element, str) else None
        flat = flattened(current) if current is not None else None
        if one is None:
            if flat is not None and element == flat.name:
                found.append(flat.discriminator)
            else:
                found.append(element)
            continue
        if flat is None or one.number not in {field.number for field in flat.variants.values()}:
            found.append(json_name(one))
        current = one.message_type
        if current is not None and current.GetOptions().map_entry:
            current = current.fields_by_name["value"].message_type
    return found
