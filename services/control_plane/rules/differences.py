"""What an update has changed, in words for an app's timeline: enough to take it back by hand. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb

_SHOWN = 10
"""Fields that are named; of more their number is told."""
_LONGEST_VALUE = 120
_WITH_VALUES = frozenset({"config", "labels"})


def differences(before: pb.App, after: pb.App) -> str:
    """Return a sentence that names the changed fields, a single value with what it was; empty for none.

    Of `env`, `secret_env` and `annotations` the keys are named and no values: those may be secret, and a
    timeline is kept.
    """
    found: list[str] = []
    for field in pb.App.DESCRIPTOR.fields:
        old, new = getattr(before, field.name), getattr(after, field.name)
        if old == new:
            continue
        if field.name == "config":
            found += _keys(field.name, MessageToDict(old), MessageToDict(new))
        elif field.message_type is not None and field.message_type.GetOptions().map_entry:
            found += _keys(field.name, dict(old), dict(new))
        elif field.message_type is not None or _is_list(old):
            found.append(field.name)
        else:
            found.append(f"{field.name} (was {_value(field, old)})")
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f"Changed: {', '.join(found[:_SHOWN])}{more}."


def _keys(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    told: list[str] = []
    for key in sorted({*before, *after}):
        if before.get(key) == after.get(key):
            continue
        was = f" (was {_short(before[key]) if key in before else 'not set'})" if name in _WITH_VALUES else ""
        told.append(f"{name}.{key}{was}")
    return told


def _is_list(value: object) -> bool:
    return not isinstance(value, str | bytes | int | float | Message)


def _value(field: FieldDescriptor, value: object) -> str:
    if field.enum_type is not None and isinstance(value, int):
        known = field.enum_type.values_by_number.get(value)
        return str(known.name if known is not None else value)
    return _short(value) or "empty"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else text[:_LONGEST_VALUE] + "…"
