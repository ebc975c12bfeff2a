"""Others can generate from our protos, where ours alone lie: protoc's own Python stubs, a protoset, buf."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import yaml
from google.protobuf import descriptor_pb2
from reference import write_reference

from tests.contract.protos.conftest import PROTOS
from tests.contract.protos.declared import Contract


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


def test_the_reference_tells_every_method_and_links_to_what_is_there(
    contract: Contract, generator: ModuleType, tmp_path: Path
) -> None:
    generator.generate(tmp_path)
    raw = (tmp_path / "appsupervisor/documented.binpb").read_bytes()
    write_reference(descriptor_pb2.FileDescriptorSet.FromString(raw), tmp_path / "reference")
    pages = {path.name: path.read_text() for path in (tmp_path / "reference").iterdir()}
    titles = {name: re.findall(r"^#+ (.+)$", text, re.MULTILINE) for name, text in pages.items()}
    told = {title for some in titles.values() for title in some}
    assert {name.rpartition(".")[2] for name in contract.methods} <= told
    for name, text in pages.items():
        for page, anchor in re.findall(r"\]\(([\w.]*)#(\w+)\)", text):
            anchors = {re.sub(r"[\W_]", "", title.lower()) for title in titles[page or name]}
            assert anchor in anchors, f"{name} links to {page}#{anchor}"


def test_comparing_words_of_two_enums_is_a_type_error(tmp_path: Path) -> None:
    """RUNNING of a desired state and PENDING of a state have the same number, and nothing else in common."""
    code = tmp_path / "compares.py"
    code.write_text(
        "from appsupervisor.catalog.v1.app_catalog_pb2 import App\n"
        "from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance\n"
        "print(App.RUNNING == Instance.PENDING)\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(tmp_path / "cache"), str(code)]
    checked = subprocess.run(
        command, cwd=PROTOS.parent, capture_output=True, text=True, timeout=110, check=False
    )
    assert "compares.py:3: error: Non-overlapping equality check" in checked.stdout, checked.stdout
