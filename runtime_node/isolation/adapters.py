"""Pydantic type adapters that instances of one code share, where FastAPI would build equal ones for each.

They are half of what one more FastAPI app costs, in time and in memory, and nothing of an app's is in them.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
import sys
import threading
import typing
import weakref
from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, GenericAlias, UnionType
from typing import Any

from runtime_node.isolation.dismantle import keep_whole

_MODULE = "fastapi._compat.v2"
# All that `ModelField.__post_init__` may look at for its adapter to depend on nothing but the field's
# annotation, metadata and attributes, and the field's configuration.
_KNOWN_NAMES = frozenset(
    {
        "warnings", "catch_warnings", "simplefilter", "shared", "PYDANTIC_VERSION_MINOR_TUPLE",
        "pydantic.warnings", "UnsupportedFieldAttributeWarning", "asdict", "field_info", "Field",
        "TypeAdapter", "cast", "Any", "Annotated", "config", "_type_adapter",
    }
)  # fmt: skip
_PLAIN = (str, int, float, bool, bytes, type(None))
# Equal values of one of these types are the same; of floats -0.0 and 0.0 are not.
_EXACT = frozenset({str, int, bool, bytes, type(None)})
_GENERIC = (GenericAlias, UnionType, type(typing.List[int]), type(typing.Union[int, str]))  # noqa: UP006, UP007

_lock = threading.Lock()
_tried = False


class _NotSharableError(Exception):
    """Something whose equality is not known to be complete, or that may lead to an app."""


def share_type_adapters() -> None:
    """Let FastAPI's fields share equal adapters from now on, if it is there and makes them in a known way."""
    global _tried  # noqa: PLW0603 - one patch per process
    module = sys.modules.get(_MODULE)
    if _tried or module is None:
        return
    with _lock:
        if _tried:
            return
        _tried = True
        field: Any = getattr(module, "ModelField", None)
        describe = getattr(module, "asdict", None)
        build = getattr(field, "__post_init__", None)
        known = isinstance(build, FunctionType) and set(build.__code__.co_names) <= _KNOWN_NAMES
        if build is not None and describe is not None and known:
            field.__post_init__ = _sharing(build, describe)


def _sharing(
    build: Callable[[Any], None], describe: Callable[[Any], dict[str, Any]]
) -> Callable[[Any], None]:
    pydantic = importlib.import_module("pydantic")
    undefined = type(importlib.import_module("pydantic_core").PydanticUndefined)

    class SharedTypeAdapter(pydantic.TypeAdapter):  # type: ignore[name-defined,misc]
        """An adapter that fields of several apps may hold."""

    # A stopped app is taken apart at a moment at which another may just be given one of its adapters.
    keep_whole(SharedTypeAdapter)
    adapters: weakref.WeakValueDictionary[Any, Any] = weakref.WeakValueDictionary()
    """They live as long as a field of an app holds them, and so do the classes in their keys."""

    def __post_init__(self: Any) -> None:  # noqa: N807 - it stands for the one of FastAPI
        try:
            key = _key(describe(self.field_info), self.config, undefined)
            adapter = adapters.get(key)
        except (_NotSharableError, TypeError):  # or what has no hash
            build(self)
            return
        if adapter is None:
            build(self)
            adapter = self._type_adapter
            if type(adapter) is pydantic.TypeAdapter and adapter.pydantic_complete:
                adapter.__class__ = SharedTypeAdapter
                adapters[key] = adapter
        else:
            self._type_adapter = adapter

    return __post_init__


def _key(field: dict[str, Any], config: Any, undefined: type) -> Any:
    """Return what two fields have in common only if their adapters are the same in all they do."""
    if config is not None:
        raise _NotSharableError
    _check_annotation(field["annotation"])
    plain = (*_PLAIN, undefined)
    metadata = tuple(_exact(item, plain) for item in field["metadata"])
    attributes = field["attributes"]
    types = tuple(map(type, attributes.values()))
    if _EXACT.issuperset(types):  # as of nearly every field
        return field["annotation"], metadata, tuple(attributes), types, tuple(attributes.values())
    values = tuple(_exact(value, plain) for value in attributes.values())
    return field["annotation"], metadata, tuple(attributes), values


def _check_annotation(annotation: Any) -> None:
    """Let pass what is made of classes and literals alone: such annotations are equal only if they are the
    same. Names that are still to be looked up, and metadata, are not."""
    if annotation is None or isinstance(annotation, type) or typing.get_origin(annotation) is typing.Literal:
        return
    if not isinstance(annotation, _GENERIC) or typing.get_origin(annotation) is typing.Annotated:
        raise _NotSharableError
    for argument in typing.get_args(annotation):
        if argument is not Ellipsis:
            _check_annotation(argument)


def _exact(value: Any, plain: tuple[type, ...]) -> Any:
    """Return something that is equal only for values that are the same: 1, 1.0 and True are not."""
    kind = type(value)
    if kind in plain:
        return kind, repr(value)
    if isinstance(value, type | BuiltinFunctionType | enum.Enum):
        return value
    if isinstance(value, FunctionType) and not (
        value.__closure__ or value.__defaults__ or value.__kwdefaults__
    ):
        return value
    if getattr(getattr(kind, "__dataclass_params__", None), "frozen", False):
        parts = ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    elif kind.__module__ == "pydantic._internal._fields" and hasattr(value, "__dict__"):
        parts = (item for item in vars(value).items())  # a constraint such as a pattern
    else:
        raise _NotSharableError
    return kind, tuple((name, _exact(part, plain)) for name, part in parts)
