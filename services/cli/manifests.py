"""Apps as YAML documents: read from files, folders or stdin, and written back.

A document is an App with the field names of the API; `name` is its id or resource name. What it does not name
is left alone: messages and the maps `labels` and `annotations` are merged, everything else is replaced.
"""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from google.api import field_behavior_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.struct_pb2 import Struct

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import AppDefaults
from services.cli.client import app_name
from services.cli.errors import CliError, Exit
from services.cli.output import as_dict

MERGED_MAPS = frozenset({"labels", "annotations"})
MAX_BYTES = 16 * 1024 * 1024
"""Of all documents read by one command."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One app as a document wants it, and the fields that the document names, as an update mask has them."""

    app: App
    paths: tuple[str, ...]
    source: str


def read_manifests(sources: Iterable[str]) -> list[Manifest]:
    """Read every document of files, folders (their *.yaml, *.yml and *.json) and `-` for stdin.

    Raises CliError naming the document and the field that is wrong, or an app that is named twice.
    """
    manifests: dict[str, Manifest] = {}
    for label, content in _documents(sources):
        manifest = parse(content, label)
        earlier = manifests.get(manifest.app.name)
        if earlier is not None:
            raise CliError(f"{label}: {manifest.app.name} is in {earlier.source} already", Exit.USAGE)
        manifests[manifest.app.name] = manifest
    if not manifests:
        raise CliError("There is no document in what was given.", Exit.USAGE)
    return list(manifests.values())


def parse(content: Any, label: str) -> Manifest:
    """Return one document's app and the fields it names. Raises CliError."""
    if not isinstance(content, dict):
        raise CliError(f"{label}: a document is a mapping of an app's fields", Exit.USAGE)
    content = {str(key): value for key, value in content.items()}
    if content.pop("kind", "App") != "App":
        raise CliError(f"{label}: kind: only App is known", Exit.USAGE)
    name = content.pop("name", None)
    if not isinstance(name, str) or not name:
        raise CliError(f"{label}: name: is required", Exit.USAGE)
    # What `export` and `get` write of the system's own is no wish.
    content = {key: value for key, value in content.items() if _proto_name(key) not in OUTPUT_FIELDS}
    app = App()
    try:
        ParseDict(content, app)
    except ParseError as wrong:
        raise CliError(f"{label}: {_told(wrong)}", Exit.USAGE) from wrong
    app.name = app_name(name)
    return Manifest(app, tuple(_paths(content, App.DESCRIPTOR)), label)


def exported(app: App) -> dict[str, Any]:
    """Return an app as a document: what was wished of it, but for its secrets."""
    content = as_dict(app)
    wishes = {key: value for key, value in content.items() if key not in OUTPUT_FIELDS and key != "name"}
    return {"name": app.name.removeprefix("apps/"), **wishes}


def split_path(text: str) -> list[str]:
    """Return the parts of a mask's path; a part in backquotes may have dots."""
    return [quoted or plain for quoted, plain in re.findall(r"`([^`]*)`|([^.`]+)", text)]


def assign(message: App | AppDefaults, setting: str, option: str = "--set") -> str:
    """Apply `path=value`, as `option` takes it (the value is YAML), and return the path. Raises CliError."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise CliError(f"{option} {setting!r}: write PATH=VALUE, such as limits.max_threads=8", Exit.USAGE)
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as wrong:
        raise CliError(f"{option} {path}: {text!r} is not YAML", Exit.USAGE) from wrong
    first, *rest = split_path(path)
    if value is None:
        return path  # named and not set: its default
    field = message.DESCRIPTOR.fields_by_name.get(first)
    if field is not None and _is_text_map(field) and not isinstance(value, dict):
        value = text
    for part in reversed(rest):
        value = {part: value}
    try:
        ParseDict({first: value}, message)
    except ParseError as wrong:
        raise CliError(f"{option} {path}: {_told(wrong)}", Exit.USAGE) from wrong
    return path


def _documents(sources: Iterable[str]) -> Iterator[tuple[str, Any]]:
    left = MAX_BYTES
    for source in sources:
        for label, text in _texts(source):
            left -= len(text)
            if left < 0:
                raise CliError(f"{label}: more than {MAX_BYTES // 1024**2} MiB of documents", Exit.USAGE)
            try:
                documents = list(yaml.safe_load_all(text))
            except yaml.YAMLError as wrong:
                raise CliError(f"{label}: is not YAML: {wrong}", Exit.USAGE) from wrong
            for number, content in enumerate(documents, 1):
                if content is not None:
                    yield (label if len(documents) == 1 else f"{label} (document {number})"), content


def _texts(source: str) -> Iterator[tuple[str, str]]:
    if source == "-":
        yield "stdin", sys.stdin.read(MAX_BYTES + 1)
        return
    path = Path(source)
    try:
        if path.is_dir():
            files = sorted(file for file in path.iterdir() if file.suffix in {".yaml", ".yml", ".json"})
            if not files:
                raise CliError(f"{source} has no *.yaml, *.yml or *.json", Exit.USAGE)
        else:
            files = [path]
        for file in files:
            yield str(file), file.read_text()
    except (OSError, UnicodeDecodeError) as wrong:
        raise CliError(
            f"{source} cannot be read: {getattr(wrong, 'strerror', None) or wrong}", Exit.USAGE
        ) from wrong


def _paths(content: dict[str, Any], descriptor: Any, prefix: str = "") -> Iterator[str]:
    for key, value in content.items():
        name = _proto_name(key) if not prefix or descriptor is not None else key
        field: FieldDescriptor | None = descriptor.fields_by_name.get(name)
        if field is not None and name in MERGED_MAPS and isinstance(value, dict) and value:
            yield from (f"{prefix}{name}.{_quoted(str(inner))}" for inner in value)
        elif field is not None and _is_plain_message(field) and isinstance(value, dict) and value:
            yield from _paths(value, field.message_type, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def _is_plain_message(field: FieldDescriptor) -> bool:
    """Tell whether a mask goes into a field: not into lists, maps, one-of kinds, or the well-known types."""
    message = field.message_type
    if message is None or field.is_repeated or message.full_name.startswith("google.protobuf."):
        return False
    return not message.oneofs or all(len(one.fields) == 1 for one in message.oneofs)


def _is_text_map(field: FieldDescriptor) -> bool:
    message = field.message_type
    if message is None or message.full_name == Struct.DESCRIPTOR.full_name:
        return False
    return bool(message.GetOptions().map_entry)


def _quoted(key: str) -> str:
    return key if re.fullmatch(r"[^.`]+", key) else "`" + key.replace("`", "``") + "`"


def _proto_name(key: str) -> str:
    return re.sub(r"[A-Z]", lambda found: "_" + found[0].lower(), key)


def _told(wrong: ParseError) -> str:
    """Return what is wrong with a document's fields as one sentence, with what may have been meant."""
    text = str(wrong)
    found = re.search(r'Message type "([\w.]+)" has no field named "(\w+)"', text)
    if found is None:
        return text.replace("appsupervisor.", "").splitlines()[0]
    kind, name = found.groups()
    fields = re.findall(r"'(\w+)'", text.partition("Available Fields")[2])
    close = difflib.get_close_matches(_proto_name(name), [_proto_name(field) for field in fields], 1)
    meant = f"; did you mean {close[0]}?" if close else ""
    return f"{name}: {kind.rpartition('.')[2]} has no such field{meant}"


def _output_fields() -> frozenset[str]:
    def is_output(field: FieldDescriptor) -> bool:
        behaviors = field.GetOptions().Extensions[field_behavior_pb2.field_behavior]
        return field_behavior_pb2.OUTPUT_ONLY in behaviors

    return frozenset(field.name for field in App.DESCRIPTOR.fields if is_output(field)) | {"etag"}


OUTPUT_FIELDS = _output_fields()
"""Fields of an app that the system reports."""
