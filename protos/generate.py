"""Generates gen/ from protos/ with the pinned grpcio-tools; --check fails when gen/ has drifted."""

import argparse
import filecmp
import shutil
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).resolve().parent
GEN = PROTOS.parent / "gen"


def generate(target: Path) -> None:
    """Write the generated packages for every proto of ours below `target`."""
    sources = sorted((PROTOS / "appsupervisor").rglob("*.proto"))
    well_known = Path(str(protoc.__file__)).parent / "_proto"
    outputs = ("python", "grpc_python", "mypy", "mypy_grpc")
    args = ["protoc", f"-I{PROTOS}", f"-I{PROTOS / 'third_party'}", f"-I{well_known}"]
    args += [f"--{name}_out={target}" for name in outputs]
    if protoc.main(args + [str(path) for path in sources]) != 0:
        raise SystemExit("protoc failed")
    for path in sorted(target.rglob("*_pb2.py")):
        for folder in path.relative_to(target).parents[:-1]:
            (target / folder / "__init__.py").touch()
    (target / "appsupervisor" / "py.typed").touch()


def files_below(root: Path) -> set[str]:
    """Return the generated files below `root`, as relative paths."""
    paths = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(root)) for path in paths}


def main() -> None:
    """Generate, or compare what is committed with what would be generated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare")
    check = parser.parse_args().check
    with tempfile.TemporaryDirectory() as scratch:
        fresh = Path(scratch)
        generate(fresh)
        if check:
            names = files_below(fresh) | files_below(GEN)
            _, drifted, missing = filecmp.cmpfiles(fresh, GEN, names, shallow=False)
            if drifted or missing:
                sys.exit(f"gen/ has drifted, run make proto: {sorted(drifted + missing)}")
            return
        shutil.rmtree(GEN, ignore_errors=True)
        shutil.copytree(fresh, GEN)


if __name__ == "__main__":
    main()
