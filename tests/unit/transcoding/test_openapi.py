"""The document of a small contract, shape by shape."""

from typing import Any

import pytest

from meshkit.spelling import ContractError
from meshkit.transcoding.openapi import build_document
from meshkit.transcoding.routes import compile_services
from meshkit.transcoding.schemas import Comments, Components
from tests.unit.transcoding.conftest import Contract


@pytest.fixture(scope="module")
def document(shop: Contract) -> dict[str, Any]:
    return build_document(compile_services(shop.services), shop.image, version="1.2.3")


@pytest.fixture(scope="module")
def schemas(document: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = document["components"]["schemas"]
    return found


def ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def test_a_union_is_its_public_variants(document: dict[str, Any]) -> None:
    body = document["paths"]["/v1/parcels/"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {
        "anyOf": [ref("BookParcel"), ref("VaseParcel")],
        "discriminator": {
            "propertyName": "kind",
            "mapping": {
                "BOOK": "#/components/schemas/BookParcel",
                "VASE": "#/components/schemas/VaseParcel",
            },
        },
        "title": "Parcel Data",
    }


def test_a_variant_has_the_common_members_and_its_own(schemas: dict[str, Any]) -> None:
    book = schemas["BookParcel"]
    assert list(book["properties"]) == ["kind", "weight", "wrapping", "wish", "pages", "chapters"]
    assert book["properties"]["kind"] == {"type": "string", "const": "BOOK", "title": "Kind", "default": "BOOK"}
    assert book["properties"]["weight"]["description"] == "Its weight."
    assert book["required"] == ["kind", "weight"]
    assert (book["title"], book["description"]) == ("BookParcel", "A book in a parcel.")
    assert "TestParcel" not in schemas


def test_a_nested_union_is_a_component(schemas: dict[str, Any]) -> None:
    assert schemas["BookParcel"]["properties"]["wrapping"] == {"anyOf": [ref("Wrapping"), {"type": "null"}]}
    assert schemas["Wrapping"]["anyOf"] == [ref("Paper"), ref("Box")]
    assert "required" not in schemas["Paper"]


def test_a_route_may_be_confined_to_a_variant(document: dict[str, Any]) -> None:
    answer = document["paths"]["/v1/parcels/books/{shelf_id}"]["get"]["responses"]["200"]
    assert answer["content"]["application/json"]["schema"] == ref("BookParcel")


def test_lists_streams_and_scalars_are_answers_of_their_kind(document: dict[str, Any]) -> None:
    def schema(path: str, method: str, kind: str = "application/json") -> Any:
        return document["paths"][path][method]["responses"]["200"]["content"][kind]["schema"]

    listed = schema("/v1/parcels/", "get")
    assert (listed["type"], listed["title"]) == ("array", "Response List")
    assert listed["items"]["anyOf"] == [ref("BookParcel"), ref("VaseParcel")]
    assert schema("/v1/parcels:count", "post")["type"] == "integer"
    event = schema("/v1/shelves/{shelf_id}", "get", "text/event-stream")
    assert event["required"] == ["data"]
    assert event["properties"]["data"]["contentSchema"] == ref("SendResponse")
    assert "/v1/shelves/{shelf_id}/{path}" in document["paths"]
    assert "head" in document["paths"]["/v1/shelves/{shelf_id}/{path}"]


def test_parameters_are_described_and_never_null(document: dict[str, Any]) -> None:
    found = {one["name"]: one for one in document["paths"]["/v1/parcels/"]["get"]["parameters"]}
    assert set(found) == {"limit", "speeds", "since", "all", "above", "camelCase", "Prefer"}
    limit = found["limit"]
    assert (limit["in"], limit["required"]) == ("query", False)
    assert limit["schema"] == {
        "type": "integer",
        "minimum": -(2**31),
        "maximum": 2**31 - 1,
        "title": "Limit",
        "default": 10,
    }
    assert found["speeds"]["schema"]["items"] == ref("Speed")
    path = document["paths"]["/v1/parcels/{parcel_id}"]["patch"]["parameters"][0]
    assert (path["name"], path["in"], path["required"]) == ("parcel_id", "path", True)


def test_an_operation_says_who_may_and_how(document: dict[str, Any]) -> None:
    send = document["paths"]["/v1/parcels/"]["post"]
    assert (send["tags"], send["summary"], send["operationId"]) == (["parcels"], "Send Parcel", "send")
    assert send["description"] == "Sends a parcel.\n\nNeeds the scope `write`."
    assert send["security"] == [{"HTTPBearer": []}]
    assert {one["name"] for one in send["parameters"]} == {"quick", "Idempotency-Key", "Prefer"}
    assert set(send["responses"]) == {"200", "401", "403", "408", "409", "413", "422", "429", "503"}
    assert send["responses"]["422"]["content"]["application/json"]["schema"] == ref("HTTPValidationError")
    assert document["info"]["version"] == "1.2.3"


@pytest.fixture
def members(shop: Contract) -> dict[str, Any]:
    components = Components(Comments(shop.image))
    assert components.message(shop.message("Everything")) == ref("All")
    found: dict[str, Any] = components.schemas["All"]["properties"]
    return found


@pytest.mark.parametrize(
    ("member", "schema"),
    [
        (
            "text",
            {
                "anyOf": [{"type": "string", "minLength": 1, "maxLength": 9, "pattern": "^[a-z]+$"}, {"type": "null"}],
                "title": "Text",
                "description": "A text.",
            },
        ),
        ("small", {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1, "title": "Small"}),
        (
            "number",
            {"anyOf": [{"type": "number", "exclusiveMinimum": 0, "maximum": 1.5}, {"type": "null"}], "title": "Number"},
        ),
        ("speed", {"anyOf": [ref("Speed"), {"type": "null"}]}),
        ("at", {"anyOf": [{"type": "string", "format": "date-time"}, {"type": "null"}], "title": "At"}),
        ("free", {"anyOf": [{"additionalProperties": True, "type": "object"}, {"type": "null"}], "title": "Free"}),
        ("always", {"additionalProperties": True, "type": "object", "title": "Always"}),
        ("raw", {"anyOf": [{"type": "string", "contentEncoding": "base64"}, {"type": "null"}], "title": "Raw"}),
        ("words", {"items": {"type": "string"}, "type": "array", "title": "Words"}),
        ("silent", {"anyOf": [{"items": {"type": "string"}, "type": "array"}, {"type": "null"}], "title": "Silent"}),
        ("list", {"items": ref("Inner"), "type": "array", "maxItems": 3, "title": "List"}),
        ("structs", {"additionalProperties": {"additionalProperties": True, "type": "object"}, "type": "object",
                     "title": "Structs"}),
        ("itself", {"anyOf": [ref("All"), {"type": "null"}]}),
        (
            "preset",
            {
                "anyOf": [{"type": "integer", "minimum": 0, "exclusiveMaximum": 10}, {"type": "null"}],
                "title": "Preset",
                "default": 7,
            },
        ),
    ],
)  # fmt: skip
def test_members_have_the_shapes_of_the_original(members: dict[str, Any], member: str, schema: dict[str, Any]) -> None:
    assert members[member] == schema


def test_hidden_members_and_values_are_not_shown(members: dict[str, Any], schemas: dict[str, Any]) -> None:
    assert "secret" not in members
    assert "camelCase" in members
    assert members["computed"]["readOnly"] is True
    assert schemas["Speed"]["enum"] == ["SLOW", "VERY_FAST", "o-d-d"]
    assert schemas["Speed"]["description"] == "How a thing is sent."


def test_two_schemas_may_not_share_a_name(shop: Contract) -> None:
    with pytest.raises(ContractError, match="Inner"):
        build_document(compile_services(shop.services), shop.image, version="1", extra_schemas={"Inner": {}})
