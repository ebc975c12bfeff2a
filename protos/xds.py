"""Writes gen/appsupervisor/xds.binpb, the messages of Envoy's xDS, from a wheel of xds-protos.

That package cannot be installed beside googleapis-common-protos: both declare
google/longrunning/operations.proto, and whichever is imported second fails. Its descriptors alone are kept:
`pip download --no-deps xds-protos && python protos/xds.py xds_protos-….whl`.
"""

import argparse
import importlib
import sys
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2

TARGET = Path(__file__).resolve().parent.parent / "gen/appsupervisor/xds.binpb"

MODULES = (
    "envoy.service.discovery.v3.ads",
    "envoy.config.cluster.v3.cluster",
    "envoy.config.listener.v3.listener",
    "envoy.config.route.v3.route",
    "envoy.config.route.v3.scoped_route",
    "envoy.extensions.access_loggers.file.v3.file",
    "envoy.extensions.filters.http.grpc_http1_reverse_bridge.v3.config",
    "envoy.extensions.filters.http.header_to_metadata.v3.header_to_metadata",
    "envoy.extensions.filters.http.lua.v3.lua",
    "envoy.extensions.filters.http.router.v3.router",
    "envoy.extensions.filters.network.http_connection_manager.v3.http_connection_manager",
    "envoy.extensions.http.early_header_mutation.header_mutation.v3.header_mutation",
    "envoy.extensions.transport_sockets.tls.v3.tls",
    "envoy.extensions.retry.host.previous_hosts.v3.previous_hosts",
    "envoy.extensions.retry.priority.previous_priorities.v3.previous_priorities_config",
    "envoy.extensions.upstreams.http.v3.http_protocol_options",
)
"""What the gateway makes and reads; what these import comes along."""

_TLS = "envoy.extensions.transport_sockets.tls"
NEWER = (
    (f"{_TLS}.cert_mappers.sni.v3", "SNI", (("default_value", 1, ""),), ()),
    (
        f"{_TLS}.cert_selectors.on_demand_secret.v3",
        "Config",
        (
            ("config_source", 1, ".envoy.config.core.v3.ConfigSource"),
            ("certificate_mapper", 2, ".envoy.config.core.v3.TypedExtensionConfig"),
        ),
        ("envoy/config/core/v3/config_source.proto", "envoy/config/core/v3/extension.proto"),
    ),
)
"""Messages that Envoy 1.38 has and the package not yet: package, name, fields used (name, number, message or
text), imports."""

_OURS_ANYWAY = "google/"
_ANNOTATIONS = ("validate/", "udpa/annotations/", "xds/annotations/", "envoy/annotations/")
"""What protos say about themselves: of no use to who sends and reads the messages."""


def needed(modules: tuple[str, ...]) -> list[Any]:
    """Return the files of the modules and all that they import, each after what it imports."""
    found: dict[str, Any] = {}

    def visit(file: Any) -> None:
        if file.name in found or file.name.startswith((_OURS_ANYWAY, *_ANNOTATIONS)):
            return
        for imported in file.dependencies:
            visit(imported)
        found[file.name] = file

    for module in modules:
        visit(importlib.import_module(f"{module}_pb2").DESCRIPTOR)
    return list(found.values())


def bare(file: Any) -> descriptor_pb2.FileDescriptorProto:
    """Return a file without its annotations."""
    proto = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(proto)
    kept = [name for name in proto.dependency if not name.startswith(_ANNOTATIONS)]
    proto.ClearField("dependency")
    proto.ClearField("public_dependency")
    proto.dependency.extend(kept)
    proto.ClearField("options")
    for message in proto.message_type:
        _strip_message(message)
    for enum in proto.enum_type:
        _strip_enum(enum)
    for service in proto.service:
        service.ClearField("options")
        for method in service.method:
            method.ClearField("options")
    return proto


def _strip_message(message: descriptor_pb2.DescriptorProto) -> None:
    is_map = message.options.map_entry
    message.ClearField("options")
    if is_map:
        message.options.map_entry = True
    for field in message.field:
        field.ClearField("options")
    for oneof in message.oneof_decl:
        oneof.ClearField("options")
    for enum in message.enum_type:
        _strip_enum(enum)
    for nested in message.nested_type:
        _strip_message(nested)


def _strip_enum(enum: descriptor_pb2.EnumDescriptorProto) -> None:
    allows_alias = enum.options.allow_alias
    enum.ClearField("options")
    if allows_alias:
        enum.options.allow_alias = True
    for value in enum.value:
        value.ClearField("options")


def newer() -> list[descriptor_pb2.FileDescriptorProto]:
    """Return the files of NEWER."""
    field = descriptor_pb2.FieldDescriptorProto
    found = []
    for package, name, fields, imports in NEWER:
        path = f"{package.replace('.', '/')}/config.proto"
        file = descriptor_pb2.FileDescriptorProto(
            name=path, package=package, syntax="proto3", dependency=imports
        )
        message = file.message_type.add(name=name)
        for field_name, number, kind in fields:
            message.field.add(
                name=field_name,
                number=number,
                label=field.LABEL_OPTIONAL,
                type=field.TYPE_MESSAGE if kind else field.TYPE_STRING,
                type_name=kind or None,
            )
        found.append(file)
    return found


def main() -> None:
    """Write the descriptors of the wheel that is named."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "wheel", type=Path, help="xds_protos-….whl, as `pip download --no-deps xds-protos` gets it"
    )
    sys.path.insert(0, str(parser.parse_args().wheel.resolve()))
    files = descriptor_pb2.FileDescriptorSet(file=[*map(bare, needed(MODULES)), *newer()])
    TARGET.write_bytes(files.SerializeToString(deterministic=True))


if __name__ == "__main__":
    main()
