"""What the protos declare, flattened for rules that look at one thing at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from google.api import field_behavior_pb2, field_info_pb2, resource_pb2
from google.protobuf import descriptor_pb2

Field = descriptor_pb2.FieldDescriptorProto
TIMESTAMP = ".google.protobuf.Timestamp"
DURATION = ".google.protobuf.Duration"


@dataclass(frozen=True)
class DeclaredField:
    """A field with the full name of its message."""

    message: str
    proto: Field

    @property
    def path(self) -> str:
        """`Message.field`."""
        return f"{self.message}.{self.proto.name}"

    @property
    def name(self) -> str:
        return self.proto.name

    @property
    def repeated(self) -> bool:
        return self.proto.label == Field.LABEL_REPEATED

    @property
    def behaviors(self) -> set[str]:
        values = self.proto.options.Extensions[field_behavior_pb2.field_behavior]
        return {field_behavior_pb2.FieldBehavior.Name(value) for value in values}

    @property
    def reference(self) -> resource_pb2.ResourceReference | None:
        options = self.proto.options
        if not options.HasExtension(resource_pb2.resource_reference):
            return None
        return options.Extensions[resource_pb2.resource_reference]

    @property
    def format(self) -> str:
        info = self.proto.options.Extensions[field_info_pb2.field_info]
        return field_info_pb2.FieldInfo.Format.Name(info.format)

    def is_scalar(self, kind: "Field.Type.ValueType") -> bool:
        return self.proto.type == kind and not self.repeated


@dataclass
class Contract:
    """Every message, field, enum and method of ours, the methods' comments, and what has no comment."""

    files: descriptor_pb2.FileDescriptorSet
    messages: dict[str, descriptor_pb2.DescriptorProto] = field(default_factory=dict)
    enums: dict[str, descriptor_pb2.EnumDescriptorProto] = field(default_factory=dict)
    methods: dict[str, descriptor_pb2.MethodDescriptorProto] = field(default_factory=dict)
    comments: dict[str, str] = field(default_factory=dict)
    uncommented: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for file in self.files.file:
            commented = {
                tuple(location.path): location.leading_comments
                for location in file.source_code_info.location
                if location.leading_comments.strip()
            }
            self._walk_file(file, commented)

    def fields(self) -> Iterator[DeclaredField]:
        for name, message in self.messages.items():
            if not message.options.map_entry:
                for proto in message.field:
                    yield DeclaredField(name, proto)

    def fields_of(self, message: str) -> dict[str, DeclaredField]:
        return {item.name: item for item in self.fields() if item.message == message}

    def sent(self) -> Iterator[DeclaredField]:
        """Yield the fields of every request, and of every message of ours that a request holds."""
        messages = {method.input_type.lstrip(".") for method in self.methods.values()}
        seen: set[str] = set()
        while messages:
            name = messages.pop()
            seen.add(name)
            for item in self.fields_of(name).values():
                yield item
                held = item.proto.type_name.lstrip(".")
                if held in self.messages and held not in seen:
                    messages.add(held)

    def resources(self) -> dict[str, resource_pb2.ResourceDescriptor]:
        """Return the resources by the full name of their message."""
        return {
            name: message.options.Extensions[resource_pb2.resource]
            for name, message in self.messages.items()
            if message.options.HasExtension(resource_pb2.resource)
        }

    def _walk_file(
        self, file: descriptor_pb2.FileDescriptorProto, commented: dict[tuple[int, ...], str]
    ) -> None:
        # Paths are field numbers of FileDescriptorProto and its parts, as descriptor.proto explains.
        def note(name: str, path: tuple[int, ...]) -> None:
            if path not in commented:
                self.uncommented.append(name)

        def enum(prefix: str, proto: Any, path: tuple[int, ...]) -> None:
            name = f"{prefix}.{proto.name}"
            self.enums[name] = proto
            note(name, path)
            for index, value in enumerate(proto.value):
                note(f"{name}.{value.name}", (*path, 2, index))

        def message(prefix: str, proto: Any, path: tuple[int, ...]) -> None:
            name = f"{prefix}.{proto.name}"
            self.messages[name] = proto
            if proto.options.map_entry:
                return
            note(name, path)
            optional = {item.oneof_index for item in proto.field if item.proto3_optional}
            for index, item in enumerate(proto.field):
                note(f"{name}.{item.name}", (*path, 2, index))
            for index, item in enumerate(proto.oneof_decl):
                if index not in optional:
                    note(f"{name}.{item.name}", (*path, 8, index))
            for index, item in enumerate(proto.nested_type):
                message(name, item, (*path, 3, index))
            for index, item in enumerate(proto.enum_type):
                enum(name, item, (*path, 4, index))

        for index, item in enumerate(file.message_type):
            message(file.package, item, (4, index))
        for index, item in enumerate(file.enum_type):
            enum(file.package, item, (5, index))
        for index, service in enumerate(file.service):
            name = f"{file.package}.{service.name}"
            note(name, (6, index))
            for number, method in enumerate(service.method):
                self.methods[f"{name}.{method.name}"] = method
                self.comments[f"{name}.{method.name}"] = commented.get((6, index, 2, number), "")
                note(f"{name}.{method.name}", (6, index, 2, number))
