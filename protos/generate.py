"""Generates gen/ and docs/reference/ from protos/ with the pinned grpcio-tools; --check fails on a drift.

--imports and --descriptor-set write what other generators and tools need, wherever they are told to.
"""

import argparse
import filecmp
import importlib.util
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2
from grpc_tools import protoc
from reference import write_reference

PROTOS = Path(__file__).resolve().parent
GEN = PROTOS.parent / "gen"
REFERENCE = PROTOS.parent / "docs/reference"
XDS = "xds.binpb"
_OPTIONS = ("google/api/", "google/protobuf/descriptor.proto")
"""What protos alone use, to say something about themselves."""


def sources() -> list[Path]:
    """Return every proto of ours."""
    return sorted((PROTOS / "appsupervisor").rglob("*.proto"))


def write_imports(target: Path) -> None:
    """Write the protos of others that ours import below `target`, each where its import looks for it.

    They are those that the installed packages carry, so that they never differ from what runs.
    """
    well_known = Path(str(protoc.__file__)).parent / "_proto"
    shutil.copytree(well_known, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.py*"))
    for package in ("google.api", "google.longrunning", "google.rpc"):
        for folder in _folders(package):
            for proto in folder.glob("*.proto"):
                # googleapis-common-protos has this one under another name than the one it is imported by.
                name = "operations.proto" if proto.name == "operations_proto.proto" else proto.name
                place = target / package.replace(".", "/") / name
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(proto, place)


def run_protoc(*outputs: str) -> None:
    """Run protoc over every proto of ours with these further arguments."""
    with tempfile.TemporaryDirectory() as scratch:
        write_imports(Path(scratch))
        args = ["protoc", f"-I{PROTOS}", f"-I{scratch}", *outputs]
        # Its plugins stand beside this Python, whether or not that is on the PATH.
        os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        if protoc.main(args + [str(path) for path in sources()]) != 0:
            raise SystemExit("protoc failed")


def generate(target: Path) -> None:
    """Write the generated packages for every proto of ours below `target`."""
    outputs = ("python", "grpc_python", "mypy", "mypy_grpc")
    run_protoc(*(f"--{name}_out={target}" for name in outputs))
    for path in sorted(target.rglob("*_pb2.py")):
        for folder in path.relative_to(target).parents[:-1]:
            (target / folder / "__init__.py").touch()
    (target / "appsupervisor" / "py.typed").touch()
    _write_documented(target / "appsupervisor" / "documented.binpb")
    # From another source: protos/xds.py writes it.
    shutil.copyfile(GEN / "appsupervisor" / XDS, target / "appsupervisor" / XDS)


def write_descriptor_set(target: Path) -> None:
    """Write ours and all they import as a FileDescriptorSet: grpcurl's -protoset, buf's image."""
    run_protoc("--include_imports", "--include_source_info", f"--descriptor_set_out={target}")


def files_below(root: Path) -> set[str]:
    """Return the generated files below `root`, as relative paths."""
    paths = (path for path in root.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    return {str(path.relative_to(root)) for path in paths}


def main() -> None:
    """Generate, or compare what is committed with what would be generated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare with what would be generated")
    parser.add_argument("--imports", type=Path, metavar="DIR", help="write the protos that ours import there")
    parser.add_argument("--descriptor-set", type=Path, metavar="FILE", help="write a protoset there")
    options = parser.parse_args()
    if options.imports:
        write_imports(options.imports)
    if options.descriptor_set:
        write_descriptor_set(options.descriptor_set)
    if options.imports or options.descriptor_set:
        return
    with tempfile.TemporaryDirectory() as scratch:
        gen, pages = Path(scratch) / "gen", Path(scratch) / "reference"
        gen.mkdir()
        generate(gen)
        raw = (gen / "appsupervisor" / "documented.binpb").read_bytes()
        write_reference(descriptor_pb2.FileDescriptorSet.FromString(raw), pages)
        drifted = [name for fresh, kept in ((gen, GEN), (pages, REFERENCE)) for name in _drift(fresh, kept)]
        if options.check and drifted:
            sys.exit(f"gen/ or docs/reference/ has drifted, run make proto: {drifted}")
        for fresh, kept in ((gen, GEN), (pages, REFERENCE)) if drifted else ():
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(fresh, kept)


def _drift(fresh: Path, kept: Path) -> list[str]:
    """Return the files that differ, or that one of both lacks."""
    _, differing, missing = filecmp.cmpfiles(
        fresh, kept, files_below(fresh) | files_below(kept), shallow=False
    )
    return sorted(differing + missing)


def _write_documented(target: Path) -> None:
    """Write what servers tell by reflection: all that callers send and get, with comments and JSON names."""
    write_descriptor_set(target)
    files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()).file
    shown = [file for file in files if not file.name.startswith(_OPTIONS)]
    for file in shown:
        told = [place for place in file.source_code_info.location if place.leading_comments]
        file.source_code_info.ClearField("location")
        file.source_code_info.location.extend(told)
    target.write_bytes(descriptor_pb2.FileDescriptorSet(file=shown).SerializeToString(deterministic=True))


def _folders(package: str) -> Iterator[Path]:
    spec = importlib.util.find_spec(package)
    if spec is not None:
        yield from map(Path, spec.submodule_search_locations or ())


if __name__ == "__main__":
    main()
