"""The fields of an app, or of an event, that a filter may name, and what each comparison means for its type.

A field compiles a restriction to a closure over the message; it refuses what has no meaning for it.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from google.protobuf.descriptor import EnumDescriptor

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance, InstanceSpec
from services.control_plane.rules.filter_patterns import text_test
from services.control_plane.rules.filter_tree import Literal, joined, refuse
from services.spec.scalars import SECOND, normalize_domain

Predicate = Callable[[Any], bool]

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
_INTEGER = re.compile(r"-?[0-9]{1,19}")
_NUMBER = re.compile(r"-?[0-9]{1,19}(\.[0-9]{1,19})?([eE][+-]?[0-9]{1,2})?")
_RFC3339 = re.compile(
    r"(?P<second>\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?(?P<zone>[Zz]|[+-]\d\d:\d\d)",
    re.ASCII,
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Field(Protocol):
    """How one field takes part in filters."""

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction; `path[0]` names this field. Raises INVALID_FILTER."""
        ...


@dataclass(frozen=True, slots=True)
class TextField:
    """A string: `=` and `!=` with stars, the orders by code point, `:` for a part of it in any case."""

    get: Callable[[Any], str]

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        _no_subfields(path)
        get = self.get
        if op in ("=", "!="):
            test = text_test(value)
            if op == "=":
                if not value.has_wildcard:
                    wanted = value.text
                    return lambda app: get(app) == wanted
                return lambda app: test(get(app))
            return lambda app: not test(get(app))
        if op == ":":
            if is_presence(value):
                return lambda app: bool(get(app))
            contained = text_test(_anywhere(value), fold=True)
            return lambda app: contained(get(app).casefold())
        if value.has_wildcard:
            refuse(value.column, "a star goes with =, != and : only; write \\* in quotes for the character")
        compare, limit = _COMPARISONS[op], value.text
        return lambda app: compare(get(app), limit)


@dataclass(frozen=True, slots=True)
class EnumField:
    """An enum by the names of its values."""

    get: Callable[[Any], int]
    enum: EnumDescriptor

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        _no_subfields(path)
        get = self.get
        if op == ":" and is_presence(value):
            return lambda app: get(app) != 0
        _only(path, op, ("=", "!=", ":"))
        known = self.enum.values_by_name.get(value.text)
        if known is None:
            names = ", ".join(name.name for name in self.enum.values if name.number)
            refuse(value.column, f"{path[0].text} is one of {names}, not {_shown(value)}")
        number: int = known.number
        if op == "!=":
            return lambda app: get(app) != number
        return lambda app: get(app) == number


@dataclass(frozen=True, slots=True)
class BoolField:
    """`true` or `false`."""

    get: Callable[[Any], bool]

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        _no_subfields(path)
        get = self.get
        _only(path, op, ("=", "!=", ":"))
        if value.text not in ("true", "false"):
            refuse(value.column, f"{path[0].text} is true or false, not {_shown(value)}")
        if (value.text == "true") == (op != "!="):
            return get
        return lambda app: not get(app)


@dataclass(frozen=True, slots=True)
class NumberField:
    """A whole number, compared with any decimal one."""

    get: Callable[[Any], int]

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        _no_subfields(path)
        get = self.get
        if op == ":" and is_presence(value):
            return lambda app: get(app) != 0
        if not _NUMBER.fullmatch(value.text):
            refuse(value.column, f"{path[0].text} is a number, not {_shown(value)}")
        # An exact integer where it is one: a float cannot hold every generation.
        wanted = int(value.text) if _INTEGER.fullmatch(value.text) else float(value.text)
        compare = _COMPARISONS["=" if op == ":" else op]
        return lambda app: compare(get(app), wanted)


@dataclass(frozen=True, slots=True)
class TimeField:
    """A timestamp, compared with RFC 3339 to the nanosecond; one that is not set matches `!=` alone."""

    name: str

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        _no_subfields(path)
        name = self.name
        if op == ":" and is_presence(value):
            return lambda app: app.HasField(name)
        wanted = _timestamp(value, path[0].text)
        compare = _COMPARISONS["=" if op == ":" else op]
        unset = op == "!="

        def matches(app: App) -> bool:
            if not app.HasField(name):  # type: ignore[arg-type]
                return unset
            time = getattr(app, name)
            return compare(time.seconds * SECOND + time.nanos, wanted)

        return matches


@dataclass(frozen=True, slots=True)
class MapField:
    """A map of strings: `map:key`, and `map.key` compared; a missing key matches `!=` alone."""

    get: Callable[[Any], Any]

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        get = self.get
        name = path[0].text
        if len(path) == 1:
            if op != ":":
                refuse(path[0].column, f"{name} is a map; write {name}.key {op} value, or {name}:key")
            if is_presence(value):
                return lambda app: bool(get(app))
            if value.has_wildcard:
                matches = text_test(value)
                return lambda app: any(matches(key) for key in get(app))
            wanted = value.text
            return lambda app: wanted in get(app)
        key = ".".join(part.text for part in path[1:])
        if op == ":" and is_presence(value):
            return lambda app: key in get(app)
        if op in ("=", "!=", ":"):
            test = text_test(value)
            if op == "!=":
                return lambda app: (found := get(app).get(key)) is None or not test(found)
            return lambda app: (found := get(app).get(key)) is not None and test(found)
        if value.has_wildcard:
            refuse(value.column, "a star goes with =, != and : only; write \\* in quotes for the character")
        compare, limit = _COMPARISONS[op], value.text
        return lambda app: (found := get(app).get(key)) is not None and compare(found, limit)


@dataclass(frozen=True, slots=True)
class DomainsField:
    """The host names: `domains:name`, in any case, with stars."""

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        _no_subfields(path)
        if op != ":":
            refuse(path[0].column, f"{path[0].text} is a list; write {path[0].text}:value")
        if is_presence(value):
            return lambda app: bool(app.domains)
        if value.has_wildcard:
            test = text_test(value, fold=True)
            return lambda app: any(test(domain) for domain in app.domains)
        wanted = normalize_domain(value.text)
        return lambda app: wanted in app.domains


@dataclass(frozen=True, slots=True)
class TextsField:
    """Strings of which any may match: `:value`, with stars."""

    get: Callable[[Any], Iterable[str]]

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        get, name = self.get, ".".join(part.text for part in path)
        if op != ":":
            refuse(path[0].column, f"of {name} there may be several; write {name}:value")
        test = text_test(value)
        return lambda app: any(test(text) for text in get(app))


@dataclass(frozen=True, slots=True)
class MessageField:
    """A message; what can be compared are fields of it, by their paths below it."""

    fields: Mapping[str, Field]

    def compile(self, path: tuple[Literal, ...], op: str, value: Literal) -> Predicate:
        """Return the test of a restriction."""
        below = ".".join(part.text for part in path[1:])
        if below not in self.fields:
            known = ", ".join(f"{path[0].text}.{name}" for name in self.fields)
            refuse(path[0].column, f"of {path[0].text} only {known} can be compared")
        return self.fields[below].compile((joined(path),), op, value)


FIELDS: dict[str, Field] = {
    "name": TextField(lambda app: app.name),
    "uid": TextField(lambda app: app.uid),
    "display_name": TextField(lambda app: app.display_name),
    "labels": MapField(lambda app: app.labels),
    "annotations": MapField(lambda app: app.annotations),
    "entrypoint": TextField(lambda app: app.entrypoint),
    "environment": TextField(lambda app: app.environment),
    "domains": DomainsField(),
    "state": EnumField(lambda app: app.state, Instance.State.DESCRIPTOR),
    "health": EnumField(lambda app: app.health, Instance.Health.DESCRIPTOR),
    "desired_state": EnumField(lambda app: app.desired_state, App.DesiredState.DESCRIPTOR),
    "activation": EnumField(lambda app: app.activation, InstanceSpec.Activation.DESCRIPTOR),
    "isolation": EnumField(lambda app: app.isolation, InstanceSpec.IsolationTier.DESCRIPTOR),
    "failover": EnumField(lambda app: app.failover, App.Failover.DESCRIPTOR),
    "replicas": NumberField(lambda app: app.replicas),
    "ready_replicas": NumberField(lambda app: app.ready_replicas),
    "generation": NumberField(lambda app: app.generation),
    "reconciling": BoolField(lambda app: app.reconciling),
    "instances": MessageField({"node": TextsField(lambda app: (it.node for it in app.instances))}),
    "database": MessageField({"postgres.server": TextField(lambda app: app.database.postgres.server)}),
    "create_time": TimeField("create_time"),
    "update_time": TimeField("update_time"),
}


EVENT_FIELDS: dict[str, Field] = {
    "app": TextField(lambda event: event.name.partition("/events/")[0]),
    "type": TextField(lambda event: event.type),
    "reason": TextField(lambda event: event.reason),
    "message": TextField(lambda event: event.message),
    "actor": TextField(lambda event: event.actor),
    "generation": NumberField(lambda event: event.generation),
    "instance": TextField(lambda event: event.instance),
    "operation": TextField(lambda event: event.operation),
    "app_uid": TextField(lambda event: event.app_uid),
    "create_time": TimeField("create_time"),
}


def search(value: Literal) -> Predicate:
    """Return the test of a bare word or phrase: part of the app's id or display name, in any case.

    With stars it has to match one of them as a whole; with a slash, the name `apps/{app}` instead of the id.
    """
    test = text_test(value if value.has_wildcard else _anywhere(value), fold=True)
    if "/" in value.text:
        return lambda app: test(app.name) or test(app.display_name.casefold())
    return lambda app: test(app.name[5:]) or test(app.display_name.casefold())


RETAINED_FIELDS: dict[str, Field] = {
    "name": TextField(lambda data: data.name),
    "app": TextField(lambda data: data.app),
    "app_uid": TextField(lambda data: data.app_uid),
    "state": EnumField(lambda data: data.state, RetainedData.State.DESCRIPTOR),
    "entrypoint": TextField(lambda data: data.entrypoint),
    "size_bytes": NumberField(lambda data: data.size_bytes),
    "delete_time": TimeField("delete_time"),
    "observe_time": TimeField("observe_time"),
}


CERTIFICATE_FIELDS: dict[str, Field] = {
    "name": TextField(lambda it: it.name),
    "display_name": TextField(lambda it: it.display_name),
    "labels": MapField(lambda it: it.labels),
    "domains": DomainsField(),
    "issuer": TextField(lambda it: it.issuer),
    "fingerprint": TextField(lambda it: it.fingerprint),
    "start_time": TimeField("start_time"),
    "expire_time": TimeField("expire_time"),
    "create_time": TimeField("create_time"),
    "update_time": TimeField("update_time"),
}


def search_certificates(value: Literal) -> Predicate:
    """Return the test of a bare word or phrase: part of a certificate's name or of one of its domains."""
    test = text_test(value if value.has_wildcard else _anywhere(value), fold=True)
    return lambda it: test(it.name) or any(test(domain) for domain in it.domains)


def search_retained(value: Literal) -> Predicate:
    """Return the test of a bare word or phrase: part of the name of the app that left the data."""
    test = text_test(value if value.has_wildcard else _anywhere(value), fold=True)
    return lambda data: test(data.app)


def search_events(value: Literal) -> Predicate:
    """Return the test of a bare word or phrase: part of an event's type, reason or message, in any case."""
    test = text_test(value if value.has_wildcard else _anywhere(value), fold=True)

    def matches(event: AppEvent) -> bool:
        return any(test(text.casefold()) for text in (event.type, event.reason, event.message))

    return matches


def is_presence(value: Literal) -> bool:
    """Tell whether a value is the lone star, which asks whether the field is set."""
    return not value.quoted and value.parts == ("", "")


def _anywhere(value: Literal) -> Literal:
    return Literal(value.text, ("", *value.parts, ""), value.quoted, value.column)


def _no_subfields(path: tuple[Literal, ...]) -> None:
    if len(path) > 1:
        refuse(path[1].column, f"{path[0].text} has no fields of its own")


def _only(path: tuple[Literal, ...], op: str, operators: tuple[str, ...]) -> None:
    if op not in operators:
        refuse(path[0].column, f"{path[0].text} cannot be compared by {op}; use {', '.join(operators)}")


def _shown(value: Literal) -> str:
    return repr(value.text if len(value.text) <= 64 else value.text[:64] + "…")


def _timestamp(value: Literal, field: str) -> int:
    found = _RFC3339.fullmatch(value.text)
    try:
        if found is None:
            raise ValueError
        zone = found["zone"].upper().replace("Z", "+00:00")
        time = datetime.fromisoformat(found["second"].upper() + zone)
        since = time - _EPOCH
    except (ValueError, OverflowError):
        refuse(value.column, f"{field} is a time as in '2026-01-31T12:00:00Z', not {_shown(value)}")
    return (since.days * 86_400 + since.seconds) * SECOND + int((found["fraction"] or "0").ljust(9, "0"))
