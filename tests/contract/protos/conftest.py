"""The contract as protoc sees it: every file of ours with its comments and options."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
from google.api import annotations_pb2, client_pb2, field_behavior_pb2, field_info_pb2, resource_pb2
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2

from tests.contract.protos.declared import Contract

PROTOS = Path(__file__).resolve().parents[3] / "protos"
# Importing these registers their options, so that parsing the descriptors keeps them readable.
OPTIONS = (annotations_pb2, client_pb2, field_behavior_pb2, field_info_pb2, resource_pb2, operations_pb2)


@pytest.fixture(scope="session")
def generator() -> ModuleType:
    """protos/generate.py, which is a program and no package's module."""
    spec = importlib.util.spec_from_file_location("generate", PROTOS / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def contract(generator: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Contract:
    target = tmp_path_factory.mktemp("protos") / "descriptors.bin"
    generator.write_descriptor_set(target)
    files = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    ours = [file for file in files.file if file.package.startswith("appsupervisor.")]
    return Contract(descriptor_pb2.FileDescriptorSet(file=ours))
