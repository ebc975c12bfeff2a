"""A database server of the tests' own, seen as its administrator and as apps see it."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import psycopg
import pytest

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.fleet.v1.fleet_pb2 import DatabaseServer
from appsupervisor.runtime.v1.runtime_environment_pb2 import Database
from services.control_plane.databases.app_databases import AppDatabases
from services.control_plane.databases.names import owner_of
from services.control_plane.store.records import AppRecord, DatabaseServerRecord, Version
from tests.postgresql import Server

NAME = "databaseServers/main"
SCHEMA, DATABASE = Database.Postgres.SCHEMA, Database.Postgres.DATABASE


@dataclass
class Sql:
    """A registered server, without a control plane around it."""

    url: str
    servers: dict[str, DatabaseServerRecord] = field(default_factory=dict)

    def __post_init__(self) -> None:
        server = DatabaseServer(name=NAME, app_connections=3, max_apps=10)
        self.servers[NAME] = DatabaseServerRecord(server, self.url, b"key" * 10)

    def databases(self, leader: int = 1) -> AppDatabases:
        mirror: Any = SimpleNamespace(database_servers=self.servers)
        return AppDatabases(mirror, asyncio.get_running_loop().time, leader)

    def admin(self, query: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a query as the administrator."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(query, parameters or None)  # type: ignore[arg-type]
            return cursor.fetchall() if cursor.description else []

    def roles(self, app: AppRecord) -> list[str]:
        """Return what is left of an app's roles."""
        owner = owner_of(app.name, app.uid)
        found = self.admin("SELECT rolname FROM pg_roles WHERE starts_with(rolname::text, %s)", owner)
        return sorted(name.removeprefix(owner) for (name,) in found)


def app(name: str = "shop", mode: Any = SCHEMA) -> AppRecord:
    spec = App(name=f"apps/{name}")
    spec.database.postgres.server, spec.database.postgres.mode = NAME, mode
    return AppRecord(spec.name, str(uuid.uuid4()), spec, App(), 1, Version(1, 1), 1, 1)


def ask(url: str, query: str) -> list[tuple[Any, ...]]:
    """Run a query as an app does."""
    with psycopg.connect(url, autocommit=True, connect_timeout=10) as connection:
        cursor = connection.execute(query)  # type: ignore[arg-type]
        return cursor.fetchall() if cursor.description else []


def login_in(url: str) -> str:
    return urlsplit(url).username or ""


@pytest.fixture(scope="module")
def server(postgresql: Server) -> Iterator[Sql]:
    """A server, by a database for apps on it. It asks for no password, but refuses who may not log in."""
    with ExitStack() as stack:
        yield Sql(postgresql.create_database(stack))
