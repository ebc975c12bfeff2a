"""Writes the API reference as Markdown, a page for each proto, from the protos and their comments alone."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from google.api import field_behavior_pb2
from google.longrunning import operations_pb2
from google.protobuf import descriptor_pb2

Field = descriptor_pb2.FieldDescriptorProto
_OURS = "appsupervisor."
_HEADER = "<!-- Written by protos/generate.py from the protos: change those, and run make proto. -->\n"
_SCALARS = {Field.Type.Value(name): name.removeprefix("TYPE_").lower() for name in list(Field.Type.keys())}
_PARTS = re.compile(
    r"^(Precondition(?=:)|On success(?=:)|Idempotent|Cancelling|Rolled back(?=:)|Errors(?=:))", re.MULTILINE
)


def write_reference(files: descriptor_pb2.FileDescriptorSet, target: Path) -> None:
    """Write the pages of every proto of ours into the folder `target`; `files` have their comments."""
    target.mkdir(parents=True, exist_ok=True)
    ours = sorted((file for file in files.file if file.package.startswith(_OURS)), key=lambda file: file.name)
    pages = {f"{file.package}.{one.name}": page_name(file) for file in ours for one in file.message_type}
    contents = [_HEADER, "# API reference\n", "| package | services | about |\n|---|---|---|"]
    for file in ours:
        page, name = Page(file, pages), page_name(file)
        (target / name).write_text(page.text())
        services = ", ".join(f"[{one.name}]({name}#{one.name.lower()})" for one in file.service)
        contents.append(f"| [{file.package}]({name}) | {services} | {_cell(page.about)} |")
    contents.append(
        "\nOperations are Google's: `google.longrunning.Operations` has Get, List, Wait, Cancel and Delete."
    )
    contents.append("Every server has reflection, `grpc.health.v1.Health` and channelz.")
    (target / "index.md").write_text("\n".join(contents) + "\n")


def page_name(file: descriptor_pb2.FileDescriptorProto) -> str:
    """Return the name of a proto's page."""
    return f"{Path(file.name).stem}.md"


class Page:
    """One proto's page: services first, then messages and enums, each with what it says of itself.

    `pages` tells the page of each message at the top of its file, by full name.
    """

    def __init__(self, file: descriptor_pb2.FileDescriptorProto, pages: dict[str, str]) -> None:
        self._file = file
        self._pages = pages
        self._comments = {
            tuple(place.path): _plain(place.leading_comments) for place in file.source_code_info.location
        }
        # Paths are field numbers of FileDescriptorProto and its parts: 12 is its `syntax`.
        self.about = self._comments.get((12,), "")

    def text(self) -> str:
        """Return the page."""
        return "\n".join(line.rstrip(" ") for line in self._lines()).rstrip() + "\n"

    def _lines(self) -> Iterator[str]:
        yield from (_HEADER, f"# {self._file.package}\n", f"{self.about}\n")
        for index, service in enumerate(self._file.service):
            yield f"## {service.name}\n"
            yield self._said((6, index))
            for number, method in enumerate(service.method):
                yield from self._method(method, (6, index, 2, number))
        if self._file.message_type:
            yield "## Messages\n"
        for index, message in enumerate(self._file.message_type):
            yield from self._message(message, message.name, (4, index))
        for index, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, enum.name, (5, index))

    def _method(self, method: descriptor_pb2.MethodDescriptorProto, path: tuple[int, ...]) -> Iterator[str]:
        yield f"### {method.name}\n"
        stream = "stream of " if method.server_streaming else ""
        begins = method.options.Extensions[operations_pb2.operation_info]
        answer = f"{stream}{self._type(method.output_type)}"
        if begins.response_type:
            answer += f" that ends with {self._type(f'.{self._file.package}.{begins.response_type}')}"
        yield f"{self._type(method.input_type)} → {answer}\n"
        yield self._said(path)

    def _message(self, message: Any, name: str, path: tuple[int, ...]) -> Iterator[str]:
        if message.options.map_entry:
            return
        yield f"### {name}\n"
        yield self._said(path)
        maps = {one.name: one for one in message.nested_type if one.options.map_entry}
        if message.field:
            yield "| field | type | | |\n|---|---|---|---|"
            for index, field in enumerate(message.field):
                told = _cell(self._comments.get((*path, 2, index), ""))
                shown = self._field_type(field, maps)
                yield f"| `{field.name}` | {shown} | {_behavior(field)} | {told} |"
            yield ""
        for index, nested in enumerate(message.nested_type):
            yield from self._message(nested, f"{name}.{nested.name}", (*path, 3, index))
        for index, enum in enumerate(message.enum_type):
            yield from self._enum(enum, f"{name}.{enum.name}", (*path, 4, index))

    def _enum(self, enum: Any, name: str, path: tuple[int, ...]) -> Iterator[str]:
        yield f"### {name}\n"
        yield self._said(path)
        yield "| value | number | |\n|---|---|---|"
        for index, value in enumerate(enum.value):
            told = _cell(self._comments.get((*path, 2, index), ""))
            yield f"| `{value.name}` | {value.number} | {told} |"
        yield ""

    def _said(self, path: tuple[int, ...]) -> str:
        """Return a comment; what a command tells of itself becomes a list."""
        return _PARTS.sub(r"- **\1**", self._comments.get(path, "")) + "\n"

    def _field_type(self, field: Any, maps: dict[str, Any]) -> str:
        entry = maps.get(field.type_name.rpartition(".")[2])
        if entry is not None:
            key, value = (self._field_type(one, {}) for one in entry.field)
            return f"map of {key} to {value}"
        shown = self._type(field.type_name) if field.type_name else _SCALARS[field.type]
        return f"repeated {shown}" if field.label == Field.LABEL_REPEATED else shown

    def _type(self, full: str) -> str:
        """Return a type's name, with a link to where it is told if it is ours."""
        name = full.lstrip(".")
        found = re.match(r"((?:[a-z]\w*\.)+)((\w+)[\w.]*)", name)
        page = self._pages.get(f"{found[1]}{found[3]}") if found else None
        if found is None or page is None:
            return f"`{name}`"
        page = "" if page == page_name(self._file) else page
        return f"[{found[2]}]({page}#{found[2].lower().replace('.', '')})"


def _behavior(field: Any) -> str:
    values = field.options.Extensions[field_behavior_pb2.field_behavior]
    names = (field_behavior_pb2.FieldBehavior.Name(value).lower().replace("_", " ") for value in values)
    return ", ".join(name for name in names if name != "optional")


def _plain(comment: str) -> str:
    """Return a comment without the blank that begins each of its lines."""
    return "\n".join(line.removeprefix(" ") for line in comment.rstrip("\n").split("\n"))


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")
