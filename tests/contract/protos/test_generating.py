"""Others can generate from our protos, where ours alone lie: protoc's own Python stubs, a protoset, buf."""

import ast
import re
from pathlib import Path
from types import ModuleType

import yaml
from google.protobuf import descriptor_pb2

from tests.contract.protos.conftest import PROTOS


def test_the_proto_root_holds_our_protos_alone() -> None:
    assert {path.relative_to(PROTOS).parts[0] for path in PROTOS.rglob("*.proto")} == {"appsupervisor"}


def test_what_ours_import_is_written_where_the_import_looks(generator: ModuleType, tmp_path: Path) -> None:
    generator.write_imports(tmp_path)
    imported = {
        name
        for path in generator.sources()
        for name in re.findall(r'^import "(.+)";', path.read_text(), re.MULTILINE)
    }
    assert "google/longrunning/operations.proto" in imported
    assert [name for name in imported if not ((PROTOS / name).exists() or (tmp_path / name).exists())] == []


def test_a_protoset_holds_ours_and_all_they_import(generator: ModuleType, tmp_path: Path) -> None:
    generator.write_descriptor_set(tmp_path / "protoset")
    files = descriptor_pb2.FileDescriptorSet.FromString((tmp_path / "protoset").read_bytes()).file
    names = {file.name for file in files}
    assert {str(path.relative_to(PROTOS)) for path in generator.sources()} <= names
    assert {name for file in files for name in file.dependency} <= names


def test_protoc_itself_writes_python_stubs_that_parse(generator: ModuleType, tmp_path: Path) -> None:
    generator.run_protoc(f"--pyi_out={tmp_path}")
    stubs = list(tmp_path.rglob("*.pyi"))
    assert len(stubs) == len(generator.sources())
    for path in stubs:
        ast.parse(path.read_text(), str(path))


def test_buf_knows_the_module_by_name_and_what_it_needs() -> None:
    config = yaml.safe_load((PROTOS / "buf.yaml").read_text())
    assert [module["name"] for module in config["modules"]] == ["buf.build/appsupervisor/appsupervisor"]
    assert config["deps"] == ["buf.build/googleapis/googleapis"]
    assert yaml.safe_load((PROTOS / "buf.gen.yaml").read_text())["version"] == "v2"
