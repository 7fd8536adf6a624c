"""Write the software bill of materials of an image, as CycloneDX 1.6 JSON, before it is built.

    .venv/bin/python scripts/sbom.py inference > inference.cdx.json

It names what the `Dockerfile` puts into the image: the packages of its set with the releases of `requirements.lock`,
the packages of Debian that it installs, and the image that it stands on. Licences are what packages declare that are
installed in the same release where this runs. The same lock and `Dockerfile` make the same bytes there.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any
from uuid import NAMESPACE_URL, uuid5

ROOT = Path(__file__).resolve().parents[1]
TARGETS = ("control-plane", "providers", "inference", "training")
_STAGE = re.compile(r"^FROM (\S+) AS (\S+)$", re.MULTILINE)
_LICENCE_CHARS = 100  # a longer one is the text itself


class BillError(ValueError):
    """What an image has cannot be told; the text says why."""


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """What the `Dockerfile` says of an image.

    Attributes:
        base: The image that it stands on, with its tag.
        package_set: Its argument of `scripts/image_requirements.sh`.
        debian: Packages of Debian that it installs.
    """

    base: str
    package_set: str
    debian: tuple[str, ...]


def facts(dockerfile: str, target: str) -> ImageFacts:
    """Read the facts of an image.

    Args:
        dockerfile: Text of the `Dockerfile`.
        target: The stage.

    Raises:
        BillError: The stage has no packages, or there is none.
    """
    found = list(_STAGE.finditer(dockerfile))
    ends = [one.start() for one in found[1:]] + [len(dockerfile)]
    stages = {one[2]: (one[1], dockerfile[one.end() : end]) for one, end in zip(found, ends, strict=True)}
    name, text = target, ""
    while name in stages:
        name, part = stages[name]
        text = part + text
    source = re.search(r"^COPY --from=(\S+) \S+ \.venv$", text, re.MULTILINE)
    named = re.search(r"image_requirements\.sh (\S+)", stages[source[1]][1]) if source and source[1] in stages else None
    if named is None:
        raise BillError(f"the Dockerfile has no target {target} with packages")
    base = re.fullmatch(r"\$\{(\w+)\}", name)
    default = re.search(rf"^ARG {base[1]}=(\S+)$", dockerfile, re.MULTILINE) if base else None
    if base and default is None:
        raise BillError(f"the Dockerfile names no image for {name}")
    debian = re.findall(r"apt-get install -y --no-install-recommends ([^\\&|;]+)", text)
    return ImageFacts(default[1] if default else name, named[1], tuple(sorted(" ".join(debian).split())))


def pinned(lines: Sequence[str]) -> dict[str, str]:
    """Read lines of requirements: release by name."""
    pairs = (re.fullmatch(r"([A-Za-z0-9._-]+)==([^\s;]+)\s*(?:;.*)?", line.strip()) for line in lines)
    return {pair[1].lower().replace("_", "-"): pair[2] for pair in pairs if pair}


def bill(target: str, version: str, image: ImageFacts, packages: dict[str, str]) -> dict[str, Any]:
    """Make the bill.

    Args:
        target: The image.
        version: The project's.
        image: What the `Dockerfile` says of it.
        packages: Its packages: release by name.
    """
    place, _, tag = image.base.partition("@")[0].rpartition(":")
    base = f"pkg:docker/{place.removeprefix('docker.io/')}@{tag}"
    components: list[dict[str, Any]] = [
        {"type": "container", "bom-ref": base, "name": place, "version": tag, "purl": base},
        *(_debian(name) for name in image.debian),
        *(_package(name, release) for name, release in sorted(packages.items())),
    ]
    told = json.dumps([target, version, components], sort_keys=True)
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid5(NAMESPACE_URL, told)}",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "pre-build"}],
            "component": {
                "type": "container",
                "bom-ref": f"atelier/{target}@{version}",
                "name": f"atelier/{target}",
                "version": version,
                "licenses": [{"expression": "Apache-2.0"}],
            },
        },
        "components": components,
    }


def _debian(name: str) -> dict[str, Any]:
    """Name a package of Debian; a build takes the release that the archive of its base has."""
    purl = f"pkg:deb/debian/{name}"
    return {"type": "library", "bom-ref": purl, "name": name, "purl": purl}


def _package(name: str, release: str) -> dict[str, Any]:
    purl = f"pkg:pypi/{name}@{release.replace('+', '%2B')}"
    found: dict[str, Any] = {"type": "library", "bom-ref": purl, "name": name, "version": release, "purl": purl}
    if licence := _licence(name, release):
        found["licenses"] = [licence]
    return found


def _licence(name: str, release: str) -> dict[str, Any] | None:
    """Return what the package declares; None where it is not here in that release, or declares nothing."""
    try:
        here = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return None
    if here["Version"].partition("+")[0] != release.partition("+")[0]:
        return None
    if expression := here.get_all("License-Expression"):
        return {"expression": expression[0]}
    classified = [
        one.rpartition(" :: ")[2] for one in here.get_all("Classifier") or [] if one.startswith("License :: ")
    ]
    text = "".join(here.get_all("License") or []).strip()
    short = text if len(text) <= _LICENCE_CHARS and "\n" not in text and text != "UNKNOWN" else ""
    named = short or " or ".join(classified)
    return {"license": {"name": named}} if named else None


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the bill of one image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", choices=TARGETS, help="target of the Dockerfile")
    target = parser.parse_args(arguments).target
    image = facts((ROOT / "Dockerfile").read_text(encoding="utf-8"), target)
    listed = subprocess.run(
        [ROOT / "scripts" / "image_requirements.sh", image.package_set], check=True, capture_output=True, text=True
    )
    packages = pinned(listed.stdout.splitlines())
    lock = pinned((ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines())
    if strange := sorted(f"{name}=={release}" for name, release in packages.items() if lock.get(name) != release):
        raise BillError(f"not in requirements.lock: {', '.join(strange)}")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    json.dump(bill(target, version, image, packages), sys.stdout, indent=2)
    sys.stdout.write("\n")


if __name__ == "__main__":
    main()
