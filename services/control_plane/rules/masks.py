"""Field masks (AIP-134, AIP-161): which fields of a patch take the place of an app's own.

Says nothing about values: the result is checked by `app_rules` like any other app.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Struct

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from services.control_plane.rules.app_defaults import (
    IDENTITY_FIELDS,
    OUTPUT_ONLY_FIELDS,
    SPEC_FIELDS,
    fill_defaults,
    normalize_app,
)
from services.rpc.errors import Violation, invalid_fields
from services.spec.rules import MAX_CONFIG_DEPTH

Path = tuple[str, ...]

_MAX_PATHS = 512
_MAX_PATH_LENGTH = 1024
_SEGMENT = re.compile(r"`((?:[^`]|``)*)`|([^.`]+)")
# Set fields in it are merged one by one where no mask says otherwise; every other field is replaced whole.
_MERGED_MESSAGES = frozenset({"limits", "health_check", "restart_policy", "rollout", "autoscale"})


def apply_update(current: App, patch: App, mask: FieldMask, field: str = "update_mask") -> App:
    """Return `current` with the fields of `patch` that `mask` names, in full form.

    A named field that is not set in the patch gets its default. Without paths, the mask is every field
    set in the patch, in `limits`, `health_check`, `restart_policy`, `rollout` and `autoscale` each field by
    itself. `*` is every field that can be set, but leaves `secret_env` alone unless the patch has it: what
    was read back never has it. What is output-only stays as it is, named or not (AIP-161). Neither argument
    is changed.

    Raises INVALID_FIELD with every path that is unknown, and every immutable field that would change.
    """
    violations: list[Violation] = []
    paths = list(mask.paths[: _MAX_PATHS + 1])
    if not paths:
        parsed = list(_populated_paths(patch))
    elif paths == ["*"]:
        parsed = [(name,) for name in SPEC_FIELDS if name != "secret_env" or patch.secret_env]
    else:
        parsed = _parse_paths(paths, field, violations)
    updated = App()
    updated.CopyFrom(current)
    for path in parsed:
        if path[0] not in IDENTITY_FIELDS and path[0] not in OUTPUT_ONLY_FIELDS:
            _copy_path(updated, patch, path)
    fill_defaults(updated)
    if not updated.config.fields and not current.config.fields:
        # A path that removed nothing may have left an empty one: that is no change.
        updated.ClearField("config")
        if current.HasField("config"):
            updated.config.SetInParent()
    violations += _immutable_violations(current, updated)
    if any(path == ("name",) for path in parsed) and patch.name not in ("", current.name):
        violations.append(Violation("app.name", "cannot be changed"))
    if violations:
        raise invalid_fields(violations)
    return updated


def parse_path(text: str) -> Path:
    """Return the segments of a mask's path, backquotes removed; raises ValueError saying what is wrong.

    A star at its end stands for all that is there, as the path without it does.
    """
    if len(text) > _MAX_PATH_LENGTH:
        raise ValueError(f"is longer than {_MAX_PATH_LENGTH:,} characters")
    segments: list[str] = []
    at = 0
    while True:
        found = _SEGMENT.match(text, at)
        if found is None:
            raise ValueError("has an empty part, or a backquote that is not closed")
        quoted, plain = found.groups()
        at = found.end()
        if quoted is None and "*" in plain:
            if plain != "*" or at != len(text):
                raise ValueError("has a star, which stands for a whole part, the last one; or in backquotes")
            return tuple(segments) or ("*",)
        segments.append(plain if quoted is None else quoted.replace("``", "`"))
        if at == len(text):
            return tuple(segments)
        if text[at] != ".":
            raise ValueError("has backquotes inside of a part; they stand around a whole one")
        at += 1


def _populated_paths(patch: App) -> Iterator[Path]:
    for descriptor, value in patch.ListFields():
        if descriptor.name in _MERGED_MESSAGES:
            for inner, _ in value.ListFields():
                yield descriptor.name, inner.name
        elif descriptor.name in SPEC_FIELDS:
            yield (descriptor.name,)


def _parse_paths(paths: list[str], field: str, violations: list[Violation]) -> list[Path]:
    if len(paths) > _MAX_PATHS:
        violations.append(Violation(field, f"must have at most {_MAX_PATHS} paths"))
        return []
    parsed = []
    for index, text in enumerate(paths):
        try:
            path = _checked_path(parse_path(text))
        except ValueError as error:
            shown = text if len(text) <= 128 else text[:128] + "…"
            violations.append(Violation(f"{field}.paths[{index}]", f"{shown!r} {error}"))
        else:
            parsed.append(path)
    return parsed


def _checked_path(path: Path) -> Path:
    """Return the path, a map's key as one segment; raise ValueError if an update cannot set what is there."""
    if path == ("*",):
        raise ValueError("must be the only path")
    if path[0] in OUTPUT_ONLY_FIELDS:
        return path  # ignored, whatever it leads to
    message: Descriptor = App.DESCRIPTOR
    for depth, name in enumerate(path):
        descriptor = message.fields_by_name.get(name)
        if descriptor is None:
            known = message.fields_by_name if depth else SPEC_FIELDS
            raise ValueError(f"names no field that can be set; {message.name} has {', '.join(known)}")
        rest = path[depth + 1 :]
        if not rest:
            break
        if _is_map(descriptor):
            # Nothing lies below a map's value, so that its key may have dots, as in filters.
            return (*path[: depth + 1], ".".join(rest))
        if descriptor.message_type is None or descriptor.is_repeated:
            raise ValueError(f"goes below {name}, which can only be set as a whole")
        if descriptor.message_type is Struct.DESCRIPTOR:
            if len(rest) > MAX_CONFIG_DEPTH:
                raise ValueError(f"goes deeper than {MAX_CONFIG_DEPTH} levels")
            break
        if descriptor.message_type.file.package == "google.protobuf":
            raise ValueError(f"goes below {name}, which can only be set as a whole")
        message = descriptor.message_type
    return path


def _copy_path(target: Any, source: Any, path: Path) -> None:
    """Make the field at a checked path of `target` what it is in `source`."""
    name, *rest = path
    descriptor = target.DESCRIPTOR.fields_by_name[name]
    if not rest:
        _copy_field(target, source, descriptor)
    elif _is_map(descriptor):
        values, key = getattr(source, name), rest[0]
        if key in values:
            getattr(target, name)[key] = values[key]
        else:
            getattr(target, name).pop(key, None)
    elif descriptor.message_type is Struct.DESCRIPTOR:
        _copy_struct_path(getattr(target, name), getattr(source, name), tuple(rest))
    elif source.HasField(name) or target.HasField(name):
        _copy_path(getattr(target, name), getattr(source, name), tuple(rest))


def _copy_field(target: Message, source: Any, descriptor: FieldDescriptor) -> None:
    name = descriptor.name
    target.ClearField(name)
    value = getattr(source, name)
    if descriptor.is_repeated:
        # Also maps; a merge into an empty field is a copy.
        getattr(target, name).MergeFrom(value)
    elif descriptor.has_presence:
        if not source.HasField(name):
            return
        if descriptor.message_type is None:
            setattr(target, name, value)
        else:
            getattr(target, name).CopyFrom(value)
            getattr(target, name).SetInParent()
    else:
        setattr(target, name, value)


def _copy_struct_path(target: Struct, source: Struct, path: Path) -> None:
    """Set the value at the keys of `path` to what it is in `source`; remove it if it is not there."""
    holder = _struct_at(source, path[:-1])
    wanted = holder.fields[path[-1]] if holder is not None and path[-1] in holder.fields else None
    if wanted is None:
        there = _struct_at(target, path[:-1])
        if there is not None:
            there.fields.pop(path[-1], None)
        return
    for key in path[:-1]:
        # Reading `struct_value` makes the value a struct if it was something else.
        target = target.fields[key].struct_value
        target.SetInParent()
    target.fields[path[-1]].CopyFrom(wanted)


def _struct_at(struct: Struct, path: Path) -> Struct | None:
    for key in path:
        # Reading a key that is not there would add it.
        if key not in struct.fields or struct.fields[key].WhichOneof("kind") != "struct_value":
            return None
        struct = struct.fields[key].struct_value
    return struct


def _immutable_violations(current: App, updated: App) -> list[Violation]:
    full = normalize_app(current)
    found = []
    old_kind, new_kind = full.database.WhichOneof("kind"), updated.database.WhichOneof("kind")
    if old_kind != new_kind:
        found.append(Violation("app.database", f"cannot be changed from {old_kind} to {new_kind}"))
    if full.environment != updated.environment:
        found.append(Violation("app.environment", f"cannot be changed from {full.environment}"))
    return found


def _is_map(descriptor: FieldDescriptor) -> bool:
    return descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry
