"""Write the schemas that the tests hold the Kubernetes manifests to, from an unpacked wheel of kubernetes-validate.

That package carries every kind of thirteen releases, 108 MB; the tests need a dozen kinds of two releases. Without
descriptions these are small enough to lie here:

    pip download --no-deps kubernetes-validate==1.37.0 && unzip -d /tmp/schemas kubernetes_validate-*.whl
    .venv/bin/python scripts/kubernetes_schemas.py /tmp/schemas 1.30 1.37
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).resolve().parents[1] / "tests" / "unit" / "kubernetes"
KINDS = (
    *("daemonset-apps-v1", "deployment-apps-v1", "statefulset-apps-v1", "job-batch-v1", "configmap-v1", "namespace-v1"),
    *("persistentvolumeclaim-v1", "service-v1", "serviceaccount-v1", "ingress-networking-v1"),
    *("role-rbac-v1", "rolebinding-rbac-v1", "networkpolicy-networking-v1"),
    *("poddisruptionbudget-policy-v1", "priorityclass-scheduling-v1"),
)
_REFERENCE = re.compile(r"^.*/")


def prune(folder: Path) -> dict[str, Any]:
    """Return the schemas of the kinds, and the definitions that they refer to, without descriptions."""
    definitions = json.loads((folder / "_definitions.json").read_text(encoding="utf-8"))["$defs"]
    waiting: list[str] = []
    kinds = {kind: _bare(json.loads((folder / f"{kind}.json").read_text(encoding="utf-8")), waiting) for kind in KINDS}
    kept: dict[str, Any] = {}
    while waiting:
        name = waiting.pop()
        if name not in kept:
            kept[name] = _bare(definitions[name], waiting)
    return {"kinds": kinds, "definitions": dict(sorted(kept.items()))}


def _bare(schema: Any, found: list[str]) -> Any:
    if isinstance(schema, list):
        return [_bare(item, found) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if isinstance(target := schema.get("$ref"), str):
        name = _REFERENCE.sub("", target)
        found.append(name)
        return {"$ref": f"#/definitions/{name}"}
    return {
        key: {name: _bare(one, found) for name, one in value.items()} if key == "properties" else _bare(value, found)
        for key, value in schema.items()
        if key != "description" and not key.startswith("x-kubernetes")
    }


def main() -> None:
    """Write one file a release."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheel", type=Path, help="folder of the unpacked wheel")
    parser.add_argument("releases", nargs="+", help="releases, as 1.30")
    arguments = parser.parse_args()
    for release in arguments.releases:
        folder = f"kubernetes_validate/kubernetes-json-schema/v{release}.0-local-strict"
        text = json.dumps(prune(arguments.wheel / folder), separators=(",", ":"))
        (FOLDER / f"schemas-{release}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
