"""What an update has changed, in words for an app's timeline: enough to take it back by hand. Pure."""

from __future__ import annotations

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb

_SHOWN = 10
"""Fields that are named; of more their number is told."""
_LONGEST_VALUE = 120


def differences(before: pb.App, after: pb.App) -> str:
    """Return a sentence that names the changed fields, a single value with what it was; empty for none.

    Of maps and of `config` the keys are named and no values: those may be secret.
    """
    found: list[str] = []
    for field in pb.App.DESCRIPTOR.fields:
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if field.name == "config":
            found += _keys(field.name, old.fields, new.fields)
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            found += _keys(field.name, old, new)
        elif field.message_type is not None or _is_list(old):
            found.append(field.name)
        else:
            found.append(f"{field.name} (was {_value(field, old)})")
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"Changed: {', '.join(found[:_SHOWN])}{more}."


def _keys(name: str, old: object, new: object) -> list[str]:
    before, after = dict(old), dict(new)  # type: ignore[call-overload]
    changed = sorted(key for key in {*before, *after} if before.get(key) != after.get(key))
    return [f"{name}.{key}" for key in changed]


def _is_list(value: object) -> bool:
    return not isinstance(value, str | bytes | int | float | Message)


def _value(field: FieldDescriptor, value: object) -> str:
    if field.enum_type is not None and isinstance(value, int):
        known = field.enum_type.values_by_number.get(value)
        return str(known.name if known is not None else value)
    text = str(value)
    return (text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…") or "empty"
