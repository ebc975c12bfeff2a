"""Field masks of an environment (AIP-134): which fields of a patch take the place of its own. Pure."""

from __future__ import annotations

from google.protobuf.field_mask_pb2 import FieldMask

from appsupervisor.fleet.v1.fleet_pb2 import AppDefaults, Environment
from services.control_plane.rules.masks import parse_path
from services.rpc.errors import Violation, invalid_fields

FIELDS = ("display_name", "labels", "cordoned", "app_defaults")
_MAX_PATHS = 512


def updated_environment(
    current: Environment, patch: Environment, mask: FieldMask, field: str = "update_mask"
) -> Environment:
    """Return an environment with the fields of `patch` that `mask` names; without paths, those that are set.

    What is output-only, `name` and `etag` are left alone, named or not. Raises SupervisorError INVALID_FIELD
    with every path that is unknown.
    """
    paths = list(mask.paths)
    if len(paths) > _MAX_PATHS:
        raise invalid_fields([Violation(field, f"must have at most {_MAX_PATHS} paths")])
    if paths == ["*"]:
        paths = list(FIELDS)
    elif not paths:
        paths = [descriptor.name for descriptor, _ in patch.ListFields()]
    updated = Environment()
    updated.CopyFrom(current)
    violations = []
    for index, text in enumerate(paths):
        try:
            _copy(updated, patch, parse_path(text))
        except ValueError as error:
            shown = text if len(text) <= 128 else text[:128] + "…"
            violations.append(Violation(f"{field}.paths[{index}]", f"{shown!r} {error}"))
    if violations:
        raise invalid_fields(violations)
    return updated


def _copy(target: Environment, source: Environment, path: tuple[str, ...]) -> None:
    name, rest = path[0], ".".join(path[1:])
    if name == "labels" and rest:
        if rest in source.labels:
            target.labels[rest] = source.labels[rest]
        else:
            target.labels.pop(rest, None)
    elif name == "labels":
        target.labels.clear()
        target.labels.update(source.labels)
    elif name == "display_name" and not rest:
        target.display_name = source.display_name
    elif name == "cordoned" and not rest:
        target.cordoned = source.cordoned
    elif name == "app_defaults":
        _copy_defaults(target, source, path[1:])
    elif name not in Environment.DESCRIPTOR.fields_by_name or rest:
        raise ValueError(f"names no field that can be set; Environment has {', '.join(FIELDS)}")


def _copy_defaults(target: Environment, source: Environment, path: tuple[str, ...]) -> None:
    """Set the defaults of an environment's apps, or one of them; those that say nothing are none."""
    if len(path) > 1 or (path and path[0] not in AppDefaults.DESCRIPTOR.fields_by_name):
        known = ", ".join(AppDefaults.DESCRIPTOR.fields_by_name)
        raise ValueError(f"names no default that can be set; app_defaults has {known}")
    kept = AppDefaults()
    if path:
        kept.CopyFrom(target.app_defaults)
        kept.ClearField(path[0])  # type: ignore[arg-type]
    given = AppDefaults()
    given.CopyFrom(source.app_defaults)
    given.DiscardUnknownFields()
    for field, _ in source.app_defaults.ListFields():
        if path and field.name != path[0]:
            given.ClearField(field.name)  # type: ignore[arg-type]
    kept.MergeFrom(given)
    if kept.ByteSize():
        target.app_defaults.CopyFrom(kept)
    else:
        target.ClearField("app_defaults")
