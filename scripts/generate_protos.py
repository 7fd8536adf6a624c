"""Generate `gen/` from `proto/`: messages, stubs, type stubs and the descriptor image with its comments.

Runs offline. `--check` generates into a scratch folder and fails if `gen/` is not current.
`--baseline`, at a release, makes the present contracts the ones that later changes may not break:
`buf breaking proto --against proto/baseline.binpb` needs neither a network nor a history.
"""

from __future__ import annotations

import argparse
import filecmp
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = Path(sysconfig.get_path("scripts"))
IMAGE = "descriptors.binpb"
BASELINE = "baseline.binpb"
SCALER = "atelier/keda/externalscaler.proto"  # KEDA's, which monitoring serves


def generate(out: Path) -> None:
    """Write everything that is generated from the contracts into `out`.

    Raises:
        subprocess.CalledProcessError: a contract does not compile.
    """
    out.mkdir(parents=True, exist_ok=True)
    proto, third = ROOT / "proto", ROOT / "third_party"
    ours = sorted(str(path.relative_to(proto)) for path in proto.rglob("*.proto"))
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"-I{third}"]
    plugins = [
        f"--plugin=protoc-gen-mypy={SCRIPTS / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={SCRIPTS / 'protoc-gen-mypy_grpc'}",
    ]
    made = [f"--python_out={out}", f"--mypy_out=quiet:{out}"]
    subprocess.run([*protoc, *plugins, *made, *ours, "buf/validate/validate.proto", SCALER], check=True)
    services = [*(name for name in ours if name.endswith("_service.proto")), SCALER]
    stubs = [f"--grpc_python_out={out}", f"--mypy_grpc_out=quiet:{out}"]
    subprocess.run([*protoc, *plugins, *stubs, *services], check=True)
    # The image carries comments, which Python's descriptors drop: they are the OpenAPI document's descriptions.
    image = [f"--descriptor_set_out={out / 'atelier' / IMAGE}", "--include_imports", "--include_source_info"]
    subprocess.run([*protoc, *image, *ours], check=True)
    for module in list(out.rglob("*.py")):
        for folder in module.relative_to(out).parents[:-1]:
            (out / folder / "__init__.py").touch()


def freeze() -> None:
    """Write the image that `buf breaking` compares with."""
    proto = ROOT / "proto"
    image = ["-o", str(proto / BASELINE), "--exclude-source-info"]
    subprocess.run([SCRIPTS / "buf", "build", str(proto), *image], check=True, cwd=ROOT)


def _differences(left: Path, right: Path) -> list[str]:
    names = {path.relative_to(base) for base in (left, right) for path in base.rglob("*") if path.is_file()}
    names = {name for name in names if "__pycache__" not in name.parts}
    return sorted(
        str(name)
        for name in names
        if not (left / name).is_file()
        or not (right / name).is_file()
        or not filecmp.cmp(left / name, right / name, shallow=False)
    )


def main() -> int:
    """Generate, or compare; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where gen/ is not current")
    parser.add_argument(
        "--baseline", action="store_true", help="a release: later changes may not break these contracts"
    )
    arguments = parser.parse_args()
    check = arguments.check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch) / "gen"
        generate(fresh)
        if check:
            stale = _differences(fresh, ROOT / "gen")
            for name in stale:
                print(f"gen/{name} is not current: run `make proto`")
            return 1 if stale else 0
        shutil.rmtree(ROOT / "gen", ignore_errors=True)
        shutil.copytree(fresh, ROOT / "gen")
    if arguments.baseline:
        freeze()
    return 0


if __name__ == "__main__":
    sys.exit(main())
