"""Derive the table of the documented JSON surface from the machine-readable reference.

The reference is a file outside the project, named on the command line; the table that this makes is committed and is
what the contract tests compare with. It holds names, types, nullability, defaults, bounds and enum values, and none of
the reference's sentences.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "tests" / "contract" / "documented_surface.json"
ENDPOINTS, SCHEMAS = 44, 113
BOUNDS = {
    "minimum": "minimum",
    "maximum": "maximum",
    "minLength": "min_length",
    "maxLength": "max_length",
}

# The reference prints an enum as a bare string. The values are those of its prose and of public sources.
ENUMS: dict[str, list[str]] = {
    "AnatomyIssue": [
        "extra_limb", "missing_limb", "malformed_hand", "malformed_face", "distorted_proportions", "other",
    ],
    "BackgroundFixStrategy": ["color_shift", "replace"],
    "CaptioningStrategy": ["trigger_only", "prompt", "auto"],
    "EntityType": ["PRODUCT", "SUBJECT", "STYLE"],
    "ErrorCategory": [
        "VALIDATION", "PROVIDER", "RATE_LIMIT", "TIMEOUT", "RESOURCE", "CONTENT_POLICY", "CANCELLED", "INTERNAL",
    ],
    "EventType": [
        "task_created", "task_status_update", "training_status_update", "preprocessing_status_update",
        "inference_status_update", "workflow_status_update",
    ],
    "Framing": [
        "full_body", "three_quarter_upper", "upper_body", "three_quarter_lower", "lower_body", "close_up",
    ],
    "Gender": ["FEMALE", "MALE", "UNKNOWN"],
    "ProviderCapability": [
        "UPSCALE_2X", "UPSCALE_4X", "UPSCALE_8X", "UPSCALE_FLOAT", "OUTPUT_SIZE", "TEXT_TO_IMAGE", "IMAGE_TO_IMAGE",
        "LORA", "MULTI_REFERENCE", "SEED", "FACE_DETAIL", "BATCH", "VIDEO", "TEXT", "VISION",
    ],
    "ProviderType": [
        "LOCAL", "FAL_STANDARD", "FAL_SHOOTIFY_REFINER", "FAL_GARMENT_FIXER", "FASHN_STANDARD", "FREEPIK_MAGNIFIC",
        "FREEPIK_MAGNIFIC_PRECISION", "VERTEX", "AI_CORE", "NANO_BANANA_UPSCALER", "SARTIQ_ULTIMATE_REFINER",
        "SARTIQ_ULTIMATE_GARMENT_FIXER", "SARTIQ_ULTIMATE_FACE_FIXER",
    ],
    "StepStatus": ["PENDING", "RUNNING", "COMPLETED", "FAILED", "SKIPPED", "CANCELLED"],
    "TaskStatus": ["PENDING", "EXECUTING", "COMPLETED", "FAILED", "CANCELLED"],
    "TaskType": [
        "GENERATION", "EDITING", "REFINE", "VIDEO_GENERATION", "LLM_INTERACTION", "BACKGROUND_REMOVE",
        "DETAIL_ENHANCER", "BACKGROUND_FIX", "IMAGE_ADJUSTER", "FACE_ENHANCER", "EXPERIMENTAL_FAL",
    ],
    "TrainingStatus": ["PENDING", "PREPROCESSING", "TRAINING", "COMPLETED", "FAILED", "CANCELLED"],
    "TrainingType": ["LORA", "FULL"],
    "TransformType": ["resize", "center_crop", "smart_crop", "pad", "flip", "color_jitter", "remove_background"],
    "ViewAngle": ["front", "back", "side"],
    "WorkflowStatus": ["PENDING", "RUNNING", "PAUSED", "COMPLETED", "FAILED", "CANCELLED"],
}  # fmt: skip


def type_of(schema: dict[str, Any]) -> tuple[str | None, bool]:
    """Spell a JSON schema's type as the table does, with whether null is among it.

    A type is a JSON type with its format in parentheses, the name of another schema, `array<...>`, alternatives joined
    by `|`, or `any` where nothing is said of it.
    """
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1], False
    if "anyOf" in schema:
        kinds = [option for option in schema["anyOf"] if option.get("type") != "null"]
        spelled = sorted({type_of(option)[0] or "any" for option in kinds})
        return "|".join(spelled), len(kinds) < len(schema["anyOf"])
    kind = schema.get("type")
    if kind is None:
        return "any", False
    if kind == "array":
        return f"array<{type_of(schema.get('items', {}))[0]}>", False
    form = schema.get("format")
    return (f"{kind}({form})" if form else str(kind)), False


def printed_type(text: str | None) -> tuple[str | None, bool]:
    """Read a type of the reference's tables, which print none where a member is nullable."""
    if text is None:
        return None, True
    found = re.fullmatch(r"Array<(.*)>", text)
    if found:
        return f"array<{found[1] or 'any'}>", False
    return text, False


def inline_field(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    """Return a member as an endpoint's inline schema gives it."""
    kind, nullable = type_of(schema)
    field: dict[str, Any] = {"type": kind, "nullable": nullable, "required": required}
    if "default" in schema:
        field["default"] = schema["default"]
    if schema.get("readOnly"):
        field["read_only"] = True
    for option in (schema, *schema.get("anyOf", [])):
        field.update({ours: option[theirs] for theirs, ours in BOUNDS.items() if theirs in option})
    return field


def inline_schemas(node: object) -> Iterator[dict[str, Any]]:
    """Every schema with members that an endpoint prints in full, its own and nested ones."""
    if isinstance(node, dict):
        if "properties" in node and "title" in node:
            yield node
        for value in node.values():
            yield from inline_schemas(value)
    elif isinstance(node, list):
        for value in node:
            yield from inline_schemas(value)


def schemas(reference: dict[str, Any]) -> dict[str, Any]:
    """Return the schemas: the reference's list, sharpened by the endpoints' inline schemas."""
    inline = {
        str(found["title"]): found
        for endpoint in reference["endpoints"]
        for part in ("request", "responses")
        for found in inline_schemas(endpoint[part])
    }
    table: dict[str, Any] = {}
    for name, printed in sorted(reference["schemas"].items()):
        if "fields" not in printed:
            table[name] = {"kind": "union" if printed["type"] == "union" else printed["type"]}
            if name in ENUMS:
                table[name] = {"kind": "enum", "values": ENUMS[name]}
            continue
        fields = {}
        exact = inline.get(name, {"properties": {}})
        for field, said in sorted(printed["fields"].items()):
            kind, nullable = printed_type(said["type"])
            fields[field] = {"type": kind, "nullable": nullable}
            if field in exact["properties"]:
                required = field in exact.get("required", [])
                fields[field] = inline_field(exact["properties"][field], required=required)
        table[name] = {"kind": "object", "fields": fields}
    table["ProviderConfig"]["members"] = sorted(
        name for name in table if name.endswith("Config") and name != "ProviderConfig"
    )
    return table


def body(schema: dict[str, Any] | None) -> list[str]:
    """Names of the schemas that a body may have, an array's marked by `[]`."""
    if not schema:
        return []
    if schema.get("type") == "array":
        return [f"{name}[]" for name in body(schema["items"])]
    if "anyOf" in schema:
        return [name for option in schema["anyOf"] for name in body(option)]
    name = str(schema["$ref"]).rsplit("/", 1)[-1] if "$ref" in schema else schema.get("title")
    return [str(name)] if name else []


def endpoints(reference: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the table of endpoints, sorted by path and method."""
    table = []
    for endpoint in reference["endpoints"]:
        method, path, title = endpoint["method"], endpoint["path"], endpoint["title"]
        request = body((endpoint["request"] or {}).get("schema"))
        # A multipart body is named after its operation, and the reference lists it apart.
        operation = re.sub(r"\W+", "_", title.lower())
        form = f"Body_{operation}{re.sub(r'[^A-Za-z0-9]', '_', path)}_{method.lower()}"
        if form in reference["schemas"]:
            request = [form]
        parameters = []
        for parameter in sorted(endpoint["parameters"], key=lambda one: (one["in"], one["name"])):
            kind, nullable = printed_type(parameter["type"])
            default = parameter["default"]
            if default is not None and kind != "string":
                default = json.loads(default.lower())
            parameters.append(
                {"name": parameter["name"], "in": parameter["in"], "type": kind, "nullable": nullable}
                | ({} if default is None else {"default": default})
            )
        table.append(
            {
                "method": method,
                "path": path,
                "title": title,
                "parameters": parameters,
                "request": request,
                "response": [name for schema in endpoint["responses"] for name in body(schema)],
            }
        )
    return sorted(table, key=lambda one: (one["path"], one["method"]))


def derive(reference: dict[str, Any]) -> dict[str, Any]:
    """Return the whole table.

    Raises:
        ValueError: the reference is not the one of the table.
    """
    table = {"endpoints": endpoints(reference), "schemas": schemas(reference)}
    found = len(table["endpoints"]), len(table["schemas"])
    if found != (ENDPOINTS, SCHEMAS):
        raise ValueError(f"expected {ENDPOINTS} endpoints and {SCHEMAS} schemas, found {found[0]} and {found[1]}")
    return table


def main() -> int:
    """Write the table, or compare it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reference", type=Path, help="the machine-readable reference (compute-api.json)")
    parser.add_argument("--check", action="store_true", help="fail where the committed table differs")
    arguments = parser.parse_args()
    text = json.dumps(derive(json.loads(arguments.reference.read_text())), indent=1, sort_keys=True) + "\n"
    if arguments.check:
        if TABLE.read_text() == text:
            return 0
        print(f"{TABLE.relative_to(ROOT)} is not what the reference says: run this without --check")
        return 1
    TABLE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
