"""Which method answers a request."""

from pathlib import Path

import pytest

from meshkit.spelling import ContractError
from meshkit.transcoding import routes
from meshkit.transcoding.routes import Match, RouteTable, WrongMethod, compile_services, loc_of, parse_template
from tests.unit.transcoding.conftest import Contract, compile_contract


@pytest.fixture(scope="module")
def table(shop: Contract) -> RouteTable:
    return RouteTable(shop.routes.values())


@pytest.mark.parametrize(
    ("method", "path", "rpc", "values"),
    [
        ("POST", "/v1/parcels/", "Send", ()),
        ("POST", "/v1/parcels", "Send", ()),
        ("GET", "/v1/parcels", "List", ()),
        ("HEAD", "/v1/parcels", "List", ()),
        ("GET", "/v1/parcels/books/7", "Book", ("7",)),
        ("PATCH", "/v1/parcels/books", "Change", ("books",)),
        ("DELETE", "/v1/parcels/a%2Fb%20c", "Drop", ("a/b c",)),
        ("POST", "/v1/parcels:count", "Count", ()),
        ("GET", "/v1/shelves/s", "Watch", ("s",)),
        ("GET", "/v1/shelves/s/", "Watch", ("s",)),
        ("GET", "/v1/shelves/s/a/b%2Fc/d.png", "Get", ("s", "a/b/c/d.png")),
        ("HEAD", "/v1/shelves/s/a", "Get", ("s", "a")),
    ],
)
def test_a_request_finds_its_method(
    table: RouteTable, method: str, path: str, rpc: str, values: tuple[str, ...]
) -> None:
    found = table.match(method, path)
    assert isinstance(found, Match)
    assert (found.route.rpc.name, found.values) == (rpc, values)


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/parcels/a/b/c", "/v1/shelves", "/v2/parcels", "/v1/parcels:other/x", "//v1/parcels"]
)
def test_a_path_that_is_none_is_not_found(table: RouteTable, path: str) -> None:
    assert table.match("GET", path) is None


def test_a_wrong_method_names_those_there_are(table: RouteTable) -> None:
    assert table.match("PUT", "/v1/parcels/7") == WrongMethod(("DELETE", "PATCH"))
    assert table.match("HEAD", "/v1/shelves/s") == WrongMethod(("GET",)), "a stream has no HEAD"


def test_routes_know_what_is_where(shop: Contract) -> None:
    send, change, drop, count = (
        shop.routes[name] for name in ("POST Send", "PATCH Change", "DELETE Drop", "POST Count")
    )
    assert [one.name for one in send.query_fields()] == ["quick"]
    assert (send.mask, change.mask) == ("", "update_mask")
    assert change.query_fields() == []
    assert drop.query_fields() == count.query_fields() == []
    assert [one.name for one in shop.routes["GET List"].query_fields()][-1] == "camel_case"
    assert shop.routes["GET Watch"].streaming
    assert "Inward" not in {route.rpc.name for route in shop.routes.values()}


@pytest.mark.parametrize(
    ("text", "segments", "verb", "variables"),
    [
        ("/v1/a/{id}", ("v1", "a", "*"), "", [("id", 2, 3)]),
        ("/v1/{name=a/*/b}/c", ("v1", "a", "*", "b", "c"), "", [("name", 1, 4)]),
        ("/v1/{path=**}", ("v1", "**"), "", [("path", 1, None)]),
        ("/v1/{id}:cancel", ("v1", "*"), "cancel", [("id", 1, 2)]),
        ("/v1/a/", ("v1", "a"), "", []),
    ],
)
def test_templates_are_read(
    text: str, segments: tuple[str, ...], verb: str, variables: list[tuple[str, int, int]]
) -> None:
    template = parse_template(text)
    assert (template.segments, template.verb) == (segments, verb)
    assert [(one.name, one.start, one.end) for one in template.variables] == variables


@pytest.mark.parametrize("text", ["v1/a", "/v1/{id", "/v1/{**}", "/v1/{a=**}/b", "/v1/{a}{b}", "/v1//a"])
def test_a_template_that_is_none_is_an_error(text: str) -> None:
    with pytest.raises(ContractError):
        parse_template(text)


@pytest.mark.parametrize(
    ("rpcs", "reason"),
    [
        (('rpc A(M) returns (M) {option (google.api.http) = {get: "/a/{x}"};} '
          'rpc B(M) returns (M) {option (google.api.http) = {get: "/a/{y}/"};}'), "is bound by"),
        ('rpc A(M) returns (M) {option (google.api.http) = {get: "/a/{z}"};}', "no field z"),
        ('rpc A(M) returns (M) {option (google.api.http) = {post: "/a" body: "x"};}', "is no message"),
        ('rpc A(M) returns (M) {option (google.api.http) = {post: "/a" response_body: "q"};}', "no field q"),
        ('rpc A(stream M) returns (M) {option (google.api.http) = {post: "/a" body: "*"};}', "stream of requests"),
        ('rpc A(M) returns (M) {option (google.api.http) = {body: "*"};}', "no path"),
    ],
)  # fmt: skip
def test_bindings_that_cannot_be_served_are_an_error_at_start(tmp_path: Path, rpcs: str, reason: str) -> None:
    (tmp_path / "bad.proto").write_text(
        'syntax = "proto3"; package bad; import "google/api/annotations.proto";'
        f"message M {{ string x = 1; string y = 2; }} service S {{ {rpcs} }}"
    )
    contract = compile_contract(tmp_path, tmp_path, "bad.proto")
    with pytest.raises(ContractError, match=reason):
        RouteTable(compile_services(contract.services))


@pytest.mark.parametrize(
    ("route", "path", "loc"),
    [
        ("POST Send", "parcel.weight", ("body", "weight")),
        ("POST Send", "parcel.book.pages", ("body", "pages")),
        ("POST Send", "parcel.book.chapters[2].name", ("body", "chapters", 2, "name")),
        ("POST Send", "parcel.content", ("body", "kind")),
        ("POST Send", "parcel.wrapping.box.size", ("body", "wrapping", "size")),
        ("POST Send", "parcel.book", ("body",)),
        ("POST Send", "parcel", ("body",)),
        ("POST Send", "", ("body",)),
        ("POST Send", "quick", ("query", "quick")),
        ("GET List", "camel_case", ("query", "camelCase")),
        ("GET List", "speeds[1]", ("query", "speeds", 1)),
        ("GET List", "", ("query",)),
        ("PATCH Change", "parcel_id", ("path", "parcel_id")),
        ("PATCH Change", "change.weight", ("body", "weight")),
        ("POST Count", "kinds[0]", ("body", "kinds", 0)),
        ("DELETE Drop", "reason", ("body", "reason")),
        ("GET Get", "path", ("path", "path")),
    ],
)
def test_violations_are_told_where_the_caller_put_them(
    shop: Contract, route: str, path: str, loc: tuple[str | int, ...]
) -> None:
    assert loc_of(shop.routes[route], path) == loc


def test_keys_of_maps_are_part_of_a_location(shop: Contract) -> None:
    elements = routes._elements('counts["a.b\\"c"]')
    assert elements == ["counts", 'a.b"c']
    found = routes._members(shop.message("Everything"), routes._elements("inners[5].name"))
    assert found == ["inners", 5, "name"]
    assert routes._members(shop.message("Everything"), ["structs", "s", "deep"]) == ["structs", "s", "deep"]
