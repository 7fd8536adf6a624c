"""Write the schemas of operators' kinds that the tests hold manifests to, from their CustomResourceDefinitions.

Each argument is `REPOSITORY@VERSION=FILE`, a definition of a release, for instance

    git -C keda show v2.20.2:config/crd/bases/keda.sh_scaledobjects.yaml > scaledobjects.yaml
    .venv/bin/python -m scripts.crd_schemas kedacore/keda@2.20.2=scaledobjects.yaml ...

Definitions lie in `config/crd/bases` (KEDA), `config/crds/bases` (External Secrets), `config/crd/standard` (Gateway
API), `example/prometheus-operator-crd` (Prometheus operator) and `deploy/crds` (cert-manager). Descriptions are left
out, and so are rules in CEL, which no validator of JSON schemas evaluates. Members that an API server would drop in
silence are refused.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]  # ships no types

FILE = Path(__file__).resolve().parents[1] / "tests" / "unit" / "kubernetes" / "schemas-operators.json"
_LEFT_OUT = {"description", "default", "format", "nullable"}


def of_definition(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the schema of the version that a CustomResourceDefinition stores, by apiVersion and kind.

    Args:
        document: The definition.
    """
    spec = document["spec"]
    found = {}
    for version in spec["versions"]:
        if not version["storage"]:
            continue
        schema = strict(version["schema"]["openAPIV3Schema"])
        schema["properties"] = {
            **schema["properties"],
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
        }
        found[f"{spec['group']}/{version['name']} {spec['names']['kind']}"] = schema
    return found


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """Return a structural schema as a JSON schema that refuses unknown members.

    Args:
        schema: Schema of a CustomResourceDefinition, or of a member.
    """
    made = {key: value for key, value in schema.items() if key not in _LEFT_OUT and not key.startswith("x-kubernetes-")}
    if schema.get("x-kubernetes-int-or-string"):
        made.pop("anyOf", None)
        made["type"] = ["integer", "string"]
    if schema.get("nullable") and isinstance(made.get("type"), str):
        made["type"] = [made["type"], "null"]
    if "properties" in made:
        made["properties"] = {name: strict(member) for name, member in made["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields") and "additionalProperties" not in made:
            made["additionalProperties"] = False
    if isinstance(made.get("items"), dict):
        made["items"] = strict(made["items"])
    if isinstance(made.get("additionalProperties"), dict):
        made["additionalProperties"] = strict(made["additionalProperties"])
    return made


def main(arguments: list[str]) -> None:
    """Write the schemas of the files that are named."""
    kinds: dict[str, Any] = {}
    sources: dict[str, str] = {}
    for argument in arguments:
        source, _, path = argument.partition("=")
        name, _, version = source.partition("@")
        sources[name] = version
        for document in yaml.safe_load_all(Path(path).read_text(encoding="utf-8")):
            kinds |= of_definition(document)
    text = json.dumps({"sources": sources, "kinds": kinds}, separators=(",", ":"), sort_keys=True)
    FILE.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
