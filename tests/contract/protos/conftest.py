"""The contract as protoc sees it: every file of ours with its comments and options."""

from pathlib import Path

import pytest
from google.api import annotations_pb2, client_pb2, field_behavior_pb2, resource_pb2
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from tests.contract.protos.declared import Contract

PROTOS = Path(__file__).resolve().parents[3] / "protos"
# Importing these registers their options, so that parsing the descriptors keeps them readable.
OPTIONS = (annotations_pb2, client_pb2, field_behavior_pb2, resource_pb2, operations_pb2)


@pytest.fixture(scope="session")
def contract(tmp_path_factory: pytest.TempPathFactory) -> Contract:
    target = tmp_path_factory.mktemp("protos") / "descriptors.bin"
    well_known = Path(str(protoc.__file__)).parent / "_proto"
    sources = sorted(str(path) for path in (PROTOS / "appsupervisor").rglob("*.proto"))
    roots = [f"-I{PROTOS}", f"-I{PROTOS / 'third_party'}", f"-I{well_known}"]
    code = protoc.main(
        ["protoc", *roots, "--include_source_info", f"--descriptor_set_out={target}", *sources]
    )
    assert code == 0
    return Contract(descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes()))
