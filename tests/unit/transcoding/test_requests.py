"""Request messages from paths, queries and bodies."""

from typing import Any

import pytest

from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding, Loc
from meshkit.transcoding.errors import RefusedRequestError
from meshkit.transcoding.requests import RequestDecoder, ResponseEncoder
from tests.unit.transcoding.conftest import Contract


def request(
    shop: Contract,
    route: str,
    *,
    values: tuple[str, ...] = (),
    query: tuple[tuple[str, str], ...] = (),
    content: bytes = b"",
    strict: bool = False,
) -> Any:
    decoder = RequestDecoder(shop.routes[route], Codecs())
    return decoder.decode(values, query, content, Decoding(strict=strict))


def refused(shop: Contract, route: str, **options: Any) -> list[tuple[Loc, str]]:
    with pytest.raises(RefusedRequestError) as caught:
        request(shop, route, **options)
    return [(one.loc, one.type) for one in caught.value.violations]


def test_parameters_of_a_query_are_typed(shop: Contract) -> None:
    query = (
        ("limit", "5"),
        ("speeds", "SLOW"),
        ("speeds", "o-d-d"),
        ("since", "2022-04-13T15:42:05Z"),
        ("all", "True"),
        ("above", "1e2"),
        ("camelCase", "x y"),
        ("secret", "s"),
        ("unknown", "u"),
    )
    message = request(shop, "GET List", query=query)
    assert (message.limit, list(message.speeds), message.all, message.above) == (5, [1, 3], True, 100)
    assert (message.since.seconds, message.camel_case, message.secret) == (1649864525, "x y", "")


@pytest.mark.parametrize(
    ("name", "text", "kind"),
    [
        ("limit", "", "int_type"),
        ("limit", "1.0", "int_type"),
        ("limit", "٣", "int_type"),
        ("limit", "9" * 20, "int_out_of_range"),
        ("limit", "9" * 4000, "int_type"),
        ("all", "maybe", "bool_type"),
        ("above", "nan", "float_type"),
        ("above", "1e999", "finite_number"),
        ("speeds", "FAST", "enum"),
        ("since", "now", "datetime_parsing"),
    ],
)
def test_a_malformed_parameter_is_a_violation(shop: Contract, name: str, text: str, kind: str) -> None:
    assert refused(shop, "GET List", query=((name, text),)) == [(("query", name), kind)]


def test_unknown_parameters_are_refused_where_the_caller_asks(shop: Contract) -> None:
    found = refused(shop, "GET List", query=(("colour", "red"), ("secret", "s")), strict=True)
    assert found == [(("query", "colour"), "extra_forbidden"), (("query", "secret"), "extra_forbidden")]


def test_the_last_of_repeated_parameters_counts(shop: Contract) -> None:
    assert request(shop, "GET List", query=(("limit", "1"), ("limit", "2"))).limit == 2


def test_body_query_and_path_meet_in_one_message(shop: Contract) -> None:
    sent = request(shop, "POST Send", query=(("quick", "1"),), content=b'{"kind": "BOOK", "pages": 3}')
    assert (sent.quick, sent.parcel.book.pages) == (True, 3)
    found = request(shop, "GET Get", values=("s1", "a/b"))
    assert (found.shelf_id, found.path) == ("s1", "a/b")


def test_an_update_fills_its_mask(shop: Contract) -> None:
    changed = request(shop, "PATCH Change", values=("p",), content=b'{"kind": "BOOK", "weight": 3, "pages": null}')
    assert list(changed.update_mask.paths) == ["weight", "book.pages"]
    assert (changed.parcel_id, changed.change.weight) == ("p", 3)


def test_a_path_wins_over_a_body_that_names_it_too(shop: Contract) -> None:
    assert request(shop, "DELETE Drop", values=("right",), content=b'{"parcel_id": "wrong"}').parcel_id == "right"


def test_delete_may_have_a_body_or_none(shop: Contract) -> None:
    assert request(shop, "DELETE Drop", values=("p",), content=b'{"reason": "old"}').reason == "old"
    assert not request(shop, "DELETE Drop", values=("p",)).HasField("reason")


def test_a_missing_body_is_a_violation(shop: Contract) -> None:
    assert refused(shop, "POST Send") == [(("body",), "missing")]
    assert refused(shop, "POST Send", content=b" \n") == [(("body",), "missing")]


@pytest.mark.parametrize("content", [b"{", b"{'a': 1}", b'{"a": 1,}', b"\xff", b"NaN", b'"\\ud800"'])
def test_a_body_that_is_no_json_is_a_violation(shop: Contract, content: bytes) -> None:
    ((loc, kind),) = refused(shop, "POST Send", content=content)
    assert loc[0] == "body"
    assert kind == "json_invalid"


@pytest.mark.parametrize("content", [b"[]", b"null", b"3", b'"x"'])
def test_a_body_that_is_no_object_is_a_violation(shop: Contract, content: bytes) -> None:
    assert refused(shop, "POST Send", content=content) == [(("body",), "dict_type")]


def test_answers_are_unwrapped(shop: Contract) -> None:
    codecs = Codecs()
    encoders = {name: ResponseEncoder(route, codecs) for name, route in shop.routes.items()}
    assert encoders["POST Count"].encode(shop.new("CountResponse", count=2**60)) == str(2**60).encode()
    assert encoders["GET List"].encode(shop.new("ListResponse")) == b"[]"
    answer = shop.new("SendResponse")
    answer.parcel.vase.fragile = True
    assert encoders["POST Send"].encode(answer).startswith(b'{"kind":"VASE"')
    assert encoders["PATCH Change"].encode(answer).startswith(b'{"parcel":{"kind":"VASE"')
