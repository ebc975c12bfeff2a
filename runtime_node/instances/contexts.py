"""Makes the `context` that an app's factory is called with."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from google.protobuf.struct_pb2 import ListValue, Struct, Value

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec
from runtime_node.context import AppContext
from runtime_node.rules import app_id

_APPS = logging.getLogger("apps")
# Beyond this a float can no longer tell neighbouring whole numbers apart.
_EXACT = 2.0**53


def app_context(spec: InstanceSpec, data_dir: Path, database_url: str | None) -> AppContext:
    """Return the context of one instance."""
    app = app_id(spec.name)
    return AppContext(
        app=app,
        instance=spec.name,
        generation=spec.generation,
        config=plain(spec.config),
        env=dict(spec.env),
        secrets=dict(spec.secret_env),
        database_url=database_url,
        data_dir=data_dir,
        logger=_logger(spec.name),
        database_pool=spec.database_pool_size or None,
    )


def plain(struct: Struct) -> dict[str, Any]:
    """Return a Struct as plain Python values; whole numbers are int."""
    return {key: _value(value) for key, value in struct.fields.items()}


def _value(value: Value) -> Any:
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        number = value.number_value
        return int(number) if number.is_integer() and abs(number) < _EXACT else number
    if kind == "struct_value":
        return plain(value.struct_value)
    if kind == "list_value":
        items: ListValue = value.list_value
        return [_value(item) for item in items.values]
    return None if kind is None or kind == "null_value" else getattr(value, kind)


def _logger(instance: str) -> logging.Logger:
    # Not from getLogger: its registry never forgets a name, and instances come and go for years.
    logger = logging.Logger(instance)
    logger.parent = _APPS
    return logger
