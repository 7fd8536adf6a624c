"""JSON to messages and back, rule by rule."""

import base64
import math
import struct
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshkit.freeform import FreeFormLimits
from meshkit.spelling import ContractError
from meshkit.transcoding.codec import Codecs
from meshkit.transcoding.decoding import Decoding
from tests.unit.transcoding.conftest import Contract, Decode, compile_contract

Encode = Callable[[Any], dict[str, Any]]


def test_an_unset_optional_prints_null_and_lists_print_as_told(shop: Contract, encode: Encode) -> None:
    printed = encode(shop.new("Everything"))
    nothing = {"text", "large", "at", "free", "any", "inner", "speed", "silent", "inners", "itself", "camelCase"}
    assert {name for name in nothing if printed[name] is not None} == set()
    assert printed["small"] == 0
    assert printed["words"] == printed["list"] == []
    assert printed["counts"] == printed["structs"] == printed["always"] == {}
    assert "secret" not in printed
    assert "camel_case" not in printed


def test_values_print_as_documented(shop: Contract, encode: Encode) -> None:
    message = shop.new(
        "Everything", large=2**62, single=0.1, number=3.0, raw=b"\xff\xfe", speed=2, shade=1, truth=False
    )
    message.free.fields["whole"].number_value = 3
    message.free.fields["half"].number_value = 0.5
    message.free.fields["big"].number_value = 1e300
    message.inners[5].name = "five"
    message.flags[True] = "yes"
    message.lasts.seconds = 90
    printed = orjson.loads(orjson.dumps(encode(message)))
    assert printed["large"] == 2**62
    assert printed["single"] == 0.1
    assert printed["raw"] == "//4="
    assert (printed["speed"], printed["shade"]) == ("VERY_FAST", "dark_red")
    assert printed["truth"] is False
    assert orjson.dumps(printed["free"]["whole"]) == b"3"
    assert printed["free"]["big"] == 1e300
    assert printed["inners"] == {"5": {"name": "five"}}
    assert printed["flags"] == {"true": "yes"}
    assert printed["lasts"] == "90s"


@pytest.mark.parametrize(
    ("seconds", "nanos", "text"),
    [
        (0, 0, "1970-01-01T00:00:00.000Z"),
        (1649864525, 901_999_999, "2022-04-13T15:42:05.901Z"),
        (-1, 500_000_000, "1969-12-31T23:59:59.500Z"),
        (-62135596800, 0, "0001-01-01T00:00:00.000Z"),
        (253402300799, 999_999_999, "9999-12-31T23:59:59.999Z"),
    ],
)
def test_times_print_in_utc_with_milliseconds(
    shop: Contract, encode: Encode, seconds: int, nanos: int, text: str
) -> None:
    message = shop.new("Everything")
    message.at.seconds, message.at.nanos = seconds, nanos
    assert encode(message)["at"] == text


@pytest.mark.parametrize(
    ("text", "seconds", "nanos"),
    [
        ("2022-04-13T15:42:05.901Z", 1649864525, 901_000_000),
        ("2022-04-13T17:42:05.901+02:00", 1649864525, 901_000_000),
        ("2022-04-13t10:12:05.5-0530", 1649864525, 500_000_000),
        ("2022-04-13 15:42:05", 1649864525, 0),
        ("2022-04-13T15:42Z", 1649864520, 0),
        ("1969-12-31T23:59:59.123456789Z", -1, 123_456_789),
    ],
)
def test_times_are_read_with_any_offset(decode: Decode, text: str, seconds: int, nanos: int) -> None:
    message, decoding = decode("Everything", {"at": text})
    assert not decoding.violations
    assert (message.at.seconds, message.at.nanos) == (seconds, nanos)


@pytest.mark.parametrize(
    ("member", "value", "kind"),
    [
        ("text", 7, "string_type"),
        ("small", "7", "int_type"),
        ("small", True, "int_type"),
        ("small", 1.5, "int_type"),
        ("small", 2**31, "int_out_of_range"),
        ("natural", -1, "int_out_of_range"),
        ("large", 2.0**70, "int_out_of_range"),
        ("huge", 2**64, "int_out_of_range"),
        ("number", "1", "float_type"),
        ("number", math.nan, "finite_number"),
        ("number", math.inf, "finite_number"),
        ("number", "NaN", "float_type"),
        ("single", 1e300, "float_out_of_range"),
        ("truth", 1, "bool_type"),
        ("truth", "true", "bool_type"),
        ("raw", "a b!", "base64"),
        ("speed", "FAST", "enum"),
        ("speed", 1, "enum"),
        ("speed", "SPEED_SLOW", "enum"),
        ("speed", "UNSPECIFIED", "enum"),
        ("shade", "DARK_RED", "enum"),
        ("at", "yesterday", "datetime_parsing"),
        ("at", 12, "datetime_parsing"),
        ("at", "2022-13-01T00:00:00Z", "datetime_parsing"),
        ("at", "0001-01-01T00:00:00+14:00", "datetime_parsing"),
        ("lasts", "1 hour", "time_delta_parsing"),
        ("free", [], "dict_type"),
        ("many", {}, "list_type"),
        ("words", "a", "list_type"),
        ("counts", [], "dict_type"),
        ("inner", "x", "dict_type"),
    ],
)
def test_a_value_of_the_wrong_kind_is_a_violation_at_its_member(
    decode: Decode, member: str, value: Any, kind: str
) -> None:
    _, decoding = decode("Everything", {member: value})
    assert [(one.loc, one.type) for one in decoding.violations] == [(("body", member), kind)]


@pytest.mark.parametrize("number", [2**53 + 1, -(2**53) - 1, 2**63, 2**64 - 1, 1e19, 1e300])
def test_a_number_that_a_free_value_may_not_hold_exactly_is_a_violation_at_its_place(
    decode: Decode, number: float
) -> None:
    for member, value, loc in (
        ("free", {"a": [{"b c": number}]}, ("a", 0, "b c")),
        ("any", number, ()),
        ("many", [1, number], (1,)),
    ):
        _, decoding = decode("Everything", {member: value})
        assert [(one.loc, one.type) for one in decoding.violations] == [(("body", member, *loc), "number_not_exact")]


def test_a_free_value_is_measured_before_it_is_built(decode: Decode) -> None:
    limits = FreeFormLimits(max_bytes=2000, max_elements=20)
    for value, kind in (
        ({"k" * 2001: 1}, "too_large"),
        ({"a": ["x" * 1001] * 2}, "too_large"),
        ({"a": [1] * 20}, "too_long"),
        ({str(at): at for at in range(21)}, "too_long"),
        ({"a": [""] * 19}, None),
    ):
        message, decoding = decode("Everything", {"free": value}, free_form=limits)
        assert [(one.loc, one.type) for one in decoding.violations] == ([(("body", "free"), kind)] if kind else [])
        assert message.HasField("free") == (kind is None)
        for one in decoding.violations:
            assert "2000" in one.msg or "20 members" in one.msg


def test_a_free_value_whose_message_is_larger_than_its_text_is_refused_too(decode: Decode) -> None:
    _, decoding = decode("Everything", {"free": {"a": [1.5] * 900}}, free_form=FreeFormLimits(max_bytes=4000))
    assert [one.type for one in decoding.violations] == ["too_large"]


def test_every_violation_is_found_where_it_is(decode: Decode) -> None:
    data = {
        "words": ["a", 2, "c", None],
        "list": [{"name": "a"}, {"name": 3}, None],
        "counts": {"a": "x"},
        "inners": {"five": {}, "6": {"name": []}},
        "structs": {"s": 1},
        "inner": {"name": False},
    }
    _, decoding = decode("Everything", data)
    assert {one.loc[1:] for one in decoding.violations} == {
        ("words", 1),
        ("words", 3),
        ("list", 1, "name"),
        ("list", 2),
        ("counts", "a"),
        ("inners", "five"),
        ("inners", "6", "name"),
        ("structs", "s"),
        ("inner", "name"),
    }


def test_free_form_values_may_not_nest_without_end(decode: Decode) -> None:
    value: Any = 1
    for _ in range(60):
        value = {"a": [value]}
    _, decoding = decode("Everything", {"free": value})
    (violation,) = decoding.violations
    assert violation.type == "too_deep"
    assert violation.loc[:4] == ("body", "free", "a", 0)


def test_whole_numbers_are_integers_however_they_are_written(decode: Decode) -> None:
    message, decoding = decode("Everything", {"small": 7.0, "large": -(2.0**53)})
    assert not decoding.violations
    assert (message.small, message.large) == (7, -(2**53))


def test_null_is_absent(decode: Decode) -> None:
    message, decoding = decode("Everything", {"text": None, "words": None, "inner": None, "counts": None, "any": None})
    assert not decoding.violations
    assert not message.ListFields()


def test_hidden_and_computed_members_are_not_taken(decode: Decode) -> None:
    message, decoding = decode("Everything", {"secret": "s", "computed": "c", "camel_case": "no", "camelCase": "yes"})
    assert not decoding.violations
    assert (message.secret, message.HasField("computed"), message.camel_case) == ("", False, "yes")


def test_strict_refuses_what_is_not_known_but_not_what_is_printed(decode: Decode) -> None:
    data = {"colour": 1, "secret": "s", "computed": "c", "inner": {"name": "a", "age": 3}}
    _, decoding = decode("Everything", data, strict=True)
    assert {one.loc for one in decoding.violations} == {
        ("body", "colour"),
        ("body", "secret"),
        ("body", "inner", "age"),
    }
    assert {one.type for one in decoding.violations} == {"extra_forbidden"}


def test_what_is_printed_may_be_sent_back_strictly(shop: Contract, decode: Decode, encode: Encode) -> None:
    printed = encode(shop.new("Everything", text="a", computed="c"))
    _, decoding = decode("Everything", printed, strict=True)
    assert not decoding.violations


def test_a_flattened_oneof_is_chosen_by_its_discriminator(decode: Decode, encode: Encode) -> None:
    message, decoding = decode("Parcel", {"pages": 9, "weight": 2, "kind": "BOOK", "chapters": [{"name": "one"}]})
    assert not decoding.violations
    assert (message.weight, message.book.pages, message.book.chapters[0].name) == (2, 9, "one")
    printed = encode(message)
    assert next(iter(printed)) == "kind"
    assert printed == {
        "kind": "BOOK",
        "weight": 2,
        "wrapping": None,
        "wish": None,
        "pages": 9,
        "chapters": [{"name": "one"}],
    }


def test_members_of_another_variant_are_unknown(decode: Decode) -> None:
    message, decoding = decode("Parcel", {"kind": "VASE", "pages": 3})
    assert message.WhichOneof("content") == "vase"
    assert not decoding.violations
    _, decoding = decode("Parcel", {"kind": "VASE", "pages": 3}, strict=True)
    assert [one.loc for one in decoding.violations] == [("body", "pages")]


@pytest.mark.parametrize("data", [{}, {"pages": 1}, {"kind": None}])
def test_a_missing_discriminator_lists_what_it_may_be(decode: Decode, data: dict[str, Any]) -> None:
    _, decoding = decode("Parcel", data, strict=True)
    (violation,) = decoding.violations
    assert (violation.loc, violation.type) == (("body", "kind"), "missing")
    assert violation.msg == "Field required: it should be 'BOOK' or 'VASE'"


@pytest.mark.parametrize("kind", ["SHOE", "book", 3, ["BOOK"]])
def test_an_unknown_discriminator_lists_what_it_may_be(decode: Decode, kind: Any) -> None:
    _, decoding = decode("Parcel", {"kind": kind})
    assert [(one.loc, one.type, one.msg) for one in decoding.violations] == [
        (("body", "kind"), "enum", "Input should be 'BOOK' or 'VASE'")
    ]


def test_a_hidden_variant_works_and_is_not_shown(decode: Decode, encode: Encode) -> None:
    message, decoding = decode("Parcel", {"kind": "TEST"})
    assert not decoding.violations
    assert encode(message)["kind"] == "TEST"


def test_a_union_may_take_its_discriminator_from_a_sibling(decode: Decode) -> None:
    message, decoding = decode("Parcel", {"kind": "VASE", "wrapping": {"size": 3}, "wish": "BOX"})
    assert not decoding.violations
    assert message.wrapping.box.size == 3
    own, _ = decode("Parcel", {"kind": "VASE", "wrapping": {"style": "PAPER", "colour": "red"}, "wish": "BOX"})
    assert own.wrapping.paper.colour == "red"
    _, decoding = decode("Parcel", {"kind": "VASE", "wrapping": {"size": 3}})
    assert decoding.violations[0].loc == ("body", "wrapping", "style")
    empty, decoding = decode("Parcel", {"kind": "VASE", "wrapping": {}})
    assert not decoding.violations
    assert empty.HasField("wrapping")


def test_large_files_are_taken_out_for_the_upload_door(decode: Decode) -> None:
    large, small, address = "A" * 100, "B" * 10, "https://example.org/" + "c" * 100
    data = {"file": large, "files": [small, large, address], "text": "D" * 200}
    message, decoding = decode("Everything", data, upload_threshold=50)
    assert [one.loc for one in decoding.uploads] == [("body", "file"), ("body", "files", 1)]
    for index, upload in enumerate(decoding.uploads):
        assert upload.data == large
        upload.replace(f"staged-{index}")
    assert message.file == "staged-0"
    assert list(message.files) == [small, "staged-1", address]


def test_a_mask_names_the_members_present(shop: Contract, codecs: Codecs) -> None:
    plain = codecs.of(shop.message("Everything"))
    assert plain.paths({"text": None, "camelCase": "x", "unknown": 1, "secret": 1, "computed": 1, "words": []}) == [
        "text",
        "camel_case",
        "words",
    ]
    assert codecs.of(shop.message("Parcel")).paths({"kind": "BOOK", "weight": 1, "pages": None, "fragile": 1}) == [
        "weight",
        "book.pages",
    ]


def test_a_type_that_contains_itself_is_taken(decode: Decode) -> None:
    message, decoding = decode("Everything", {"itself": {"itself": {"text": "deep"}}})
    assert not decoding.violations
    assert message.itself.itself.text == "deep"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ('string a = 1; string b = 2 [(atelier.options.v1.field).name = "a"];', "two members are named a"),
        (
            (
                'string kind = 1; oneof o { option (atelier.options.v1.oneof).discriminator = "kind";'
                ' Leaf l = 2 [(atelier.options.v1.field).variant = "L"]; }'
            ),
            "also named by its parent",
        ),
        (
            (
                'string leaf = 1; oneof o { option (atelier.options.v1.oneof).discriminator = "kind";'
                ' Leaf l = 2 [(atelier.options.v1.field).variant = "L"]; }'
            ),
            "also named by its parent",
        ),
        ('oneof o { option (atelier.options.v1.oneof).discriminator = "kind"; Leaf l = 2; }', "variant of its own"),
        (
            (
                'oneof o { option (atelier.options.v1.oneof).discriminator = "kind";'
                ' string l = 2 [(atelier.options.v1.field).variant = "L"]; }'
            ),
            "variant of its own",
        ),
    ],
)
def test_a_contract_that_cannot_be_presented_is_an_error_at_start(tmp_path: Any, text: str, reason: str) -> None:
    (tmp_path / "bad.proto").write_text(
        'syntax = "proto3"; package bad; import "atelier/options/v1/options.proto";'
        f"message Bad {{ {text} }} message Leaf {{ string leaf = 1; }}"
    )
    contract = compile_contract(tmp_path, tmp_path, "bad.proto")
    with pytest.raises(ContractError, match=reason):
        Codecs().of(contract.message("Bad"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-(2.0**53), 2.0**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
moments = st.datetimes().map(lambda moment: f"{moment.isoformat('T', 'milliseconds')}Z")
inners = st.fixed_dictionaries({"name": st.none() | st.text(max_size=8)})
everything = st.fixed_dictionaries(
    {},
    optional={
        "text": st.none() | st.text(),
        "small": st.integers(-(2**31), 2**31 - 1),
        "large": st.none() | st.integers(-(2**63), 2**63 - 1),
        "huge": st.none() | st.integers(0, 2**64 - 1),
        "number": st.none() | st.floats(allow_nan=False, allow_infinity=False),
        "single": st.none() | st.floats(allow_nan=False, allow_infinity=False, width=32),
        "truth": st.none() | st.booleans(),
        "raw": st.none() | st.binary().map(lambda raw: base64.b64encode(raw).decode()),
        "speed": st.none() | st.sampled_from(["SLOW", "VERY_FAST", "o-d-d"]),
        "shade": st.none() | st.just("dark_red"),
        "at": st.none() | moments,
        "free": st.none() | st.dictionaries(st.text(max_size=4), json_values, max_size=4),
        "any": json_values,
        "many": st.none() | st.lists(json_values, max_size=3),
        "words": st.lists(st.text(max_size=5)),
        "silent": st.none() | st.lists(st.text(max_size=5), min_size=1),
        "counts": st.dictionaries(st.text(max_size=5), st.integers(0, 9)),
        "inner": st.none() | inners,
        "list": st.lists(inners, max_size=3),
        "inners": st.none() | st.dictionaries(st.integers(-9, 9).map(str), inners, min_size=1, max_size=3),
        "times": st.lists(moments, max_size=2),
        "speeds": st.lists(st.sampled_from(["SLOW", "VERY_FAST"])),
    },
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=everything)
def test_json_survives_the_way_through_a_message(
    shop: Contract, decode: Decode, encode: Encode, data: dict[str, Any]
) -> None:
    message, decoding = decode("Everything", data, strict=True)
    assert not decoding.violations
    again = type(message).FromString(message.SerializeToString())
    printed = orjson.loads(orjson.dumps(encode(again)))
    if isinstance(data.get("single"), float):
        # The shortest text that reads as the same 32-bit number, which may be another 64-bit one.
        assert struct.pack("f", printed["single"]) == struct.pack("f", data.pop("single"))
    assert {name: printed[name] for name in data} == orjson.loads(orjson.dumps(data))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    data=st.dictionaries(st.sampled_from(["text", "small", "at", "free", "list", "inners", "raw", "kind"]), json_values)
)
def test_any_json_is_decoded_or_refused_and_never_breaks(decode: Decode, data: dict[str, Any]) -> None:
    for name in ("Everything", "Parcel"):
        message, decoding = decode(name, data)
        assert decoding.violations or message.SerializeToString() is not None


def test_a_decoding_begins_clean() -> None:
    assert Decoding().violations is not Decoding().violations
