"""What a factory is given: the identity, configuration and resources of one instance."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from appsupervisor.runtime.v1.runtime_environment_pb2 import InstanceSpec


@dataclass(frozen=True, slots=True)
class AppContext:
    """The argument of `create_app(context)`. Reading it is all an app needs to know of its host."""

    app: str
    """Id of the app, the last part of `apps/{app}`."""
    instance: str
    """Resource name of the instance, `apps/{app}/instances/{instance}`."""
    generation: int
    """Generation of the app's spec that this instance runs."""
    config: Mapping[str, Any]
    """The app's `config`; whole numbers are int."""
    env: Mapping[str, str]
    """The app's `env`."""
    secrets: Mapping[str, str] = field(repr=False)
    """The app's `secret_env`."""
    database_url: str | None = field(repr=False)
    """SQLAlchemy URL of the app's own database, or None when it asked for none."""
    data_dir: Path
    """A directory of the app's own; it outlives the instance."""
    logger: logging.Logger
    """A logger whose records are attributed to this instance."""
    database_pool: int | None = None
    """Connections that its pool may have to that database, or None where nobody counts them."""

    @property
    def hidden(self) -> tuple[str, ...]:
        """What must stand in no error: values of secrets, the database's URL and the password in it."""
        return (*self.secrets.values(), *_parts_of(self.database_url or ""))


def hidden_in(spec: InstanceSpec) -> tuple[str, ...]:
    """Return what must stand in no log: values of secrets, a database's URL and the password in it."""
    return (*spec.secret_env.values(), *_parts_of(spec.database_url))


def _parts_of(url: str) -> Iterator[str]:
    if url:
        yield url
        if password := urlsplit(url).password:
            yield password
