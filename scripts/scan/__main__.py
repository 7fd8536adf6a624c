"""Have hadolint read the Dockerfile, and checkov every overlay and all components; fail at what nobody has explained.

The tools are installed beside the project, by a lock of their own: hadolint is GPL-3.0, and checkov needs a hundred
packages. What checkov finds and why it stays is told in docs/kubernetes.md.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOCK = Path(__file__).with_name("requirements.lock")
VENV = ROOT / ".cache" / "scan"
OVERLAYS = ("local", "gpu", "production")
# Components that go together on the base.
COMBINED = ("mtls", "mtls-authority", "capture", "capture-mtls", "autoscaling", "autoscaling-providers")
# A workload that every finding of its check is explained for; the table of docs/kubernetes.md has the reasons.
EVERY = "*"
_TRIAL = frozenset({"bucket", "nats", "objects", "postgresql"})
EXPLAINED: Mapping[str, frozenset[str]] = {
    "CKV_K8S_11": frozenset({EVERY}),  # no limit of processor time
    "CKV_K8S_15": frozenset({EVERY}),  # images are pulled where they are missing
    "CKV_K8S_43": frozenset({EVERY}),  # images by tag
    "CKV_K8S_35": _TRIAL | {"providers"},  # secrets in the environment
    "CKV_K8S_8": frozenset({"nats", "objects", "postgresql", "pre-pull"}),  # no liveness probe
    "CKV_K8S_9": frozenset({"pre-pull", "marker"}),  # no readiness probe
    "CKV_K8S_38": frozenset({"marker"}),  # a token of the cluster
    "CKV_K8S_40": frozenset({"postgresql"}),  # user 999
}


def main() -> int:
    """Scan; 1 if anything is unexplained, or explained and not found."""
    _install()
    lint = subprocess.run([VENV / "bin" / "hadolint", ROOT / "Dockerfile"], check=False)
    with tempfile.TemporaryDirectory(prefix="atelier-scan-") as scratch:
        folder = Path(scratch).resolve()
        for overlay in OVERLAYS:
            _build(ROOT / "k8s" / "overlays" / overlay, folder / f"{overlay}.yaml")
        _build(_combined(folder / "combined"), folder / "combined.yaml")
        found, passed = _checked(sorted(folder.glob("*.yaml")))
    nobody: frozenset[str] = frozenset()
    strange = {
        check: frozenset(names) - EXPLAINED.get(check, nobody)
        for check, names in found.items()
        if EVERY not in EXPLAINED.get(check, nobody)
    }
    gone = {check: names - {EVERY} - found.get(check, nobody) for check, names in EXPLAINED.items()}
    lines = [f"{check} is not explained for {', '.join(sorted(names))}" for check, names in strange.items() if names]
    lines += [
        f"{check} is explained and not found any more: {', '.join(sorted(names)) or 'anywhere'}"
        for check, names in gone.items()
        if names or check not in found
    ]
    print("\n".join(sorted(lines)), end="\n" if lines else "")
    print(f"hadolint: {'no finding' if lint.returncode == 0 else 'see above'}; checkov: {passed} checks passed")
    return 1 if lint.returncode or lines else 0


def _install() -> None:
    """Make the tools' environment from their lock, once for each state of that lock."""
    stamp = VENV / "lock"
    if stamp.is_file() and stamp.read_bytes() == LOCK.read_bytes():
        return
    uv = Path(sys.executable).with_name("uv")
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV], check=True)
    subprocess.run([uv, "pip", "install", "--quiet", "--python", VENV / "bin" / "python", "-r", LOCK], check=True)
    stamp.write_bytes(LOCK.read_bytes())


def _combined(folder: Path) -> Path:
    """Write a kustomization of the base and components."""
    folder.mkdir()
    base, *chosen = (
        os.path.relpath(ROOT / "k8s" / each, folder) for each in ("base", *(f"components/{one}" for one in COMBINED))
    )
    (folder / "kustomization.yaml").write_text(
        f"kind: Kustomization\nnamespace: atelier\nresources: [{base}]\ncomponents: [{', '.join(chosen)}]\n"
    )
    return folder


def _build(folder: Path, to: Path) -> None:
    kubectl = Path(sys.executable).with_name("kubectl")
    with to.open("wb") as written:
        subprocess.run([kubectl, "kustomize", folder], check=True, stdout=written)


def _checked(files: list[Path]) -> tuple[dict[str, set[str]], int]:
    """Have checkov read manifests.

    Returns:
        The names of the workloads by the check that they do not pass, and how many checks were passed.
    """
    named = [part for file in files for part in ("--file", str(file))]
    options = ["--framework", "kubernetes", "--quiet", "--compact", "--output", "json", "--skip-download"]
    answer = subprocess.run(
        [VENV / "bin" / "checkov", *named, *options], check=False, capture_output=True, text=True, cwd=files[0].parent
    )
    report = json.loads(answer.stdout)
    found: dict[str, set[str]] = defaultdict(set)
    for each in report["results"]["failed_checks"]:
        # "Deployment.namespace.name", and for a pod's template what it belongs to.
        found[each["check_id"]].add(each["resource"].split(".")[2])
    return found, report["summary"]["passed"]


if __name__ == "__main__":
    sys.exit(main())
