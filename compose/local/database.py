"""The stack's own PostgreSQL as the launcher sees it: its URLs, its databases, its registration."""

from __future__ import annotations

import asyncio
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import psycopg
from google.protobuf.field_mask_pb2 import FieldMask
from psycopg import sql

from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from compose.local.postgres import ADMINISTRATOR, password_file

if TYPE_CHECKING:
    # Of the stubs alone: at run time both kinds are FleetStub.
    from appsupervisor.fleet.v1.fleet_pb2_grpc import FleetAsyncStub

FOLDER = "postgres"
"""Where its files are, in the folder of all data."""
CATALOG, OF_APPS = "catalog", "apps"
"""Its databases: the control plane's, and that in which each app gets a schema."""
SERVER = "local"
CALL_TIMEOUT = 10.0
CONNECT_SECONDS = 3
LOOK_AGAIN = 0.1


class Database:
    """The server at one address (`host:port`), with its files in `folder`."""

    def __init__(self, folder: Path, address: str) -> None:
        self.folder = folder
        self.address = address
        self._password = _password(password_file(folder))

    def url(self, database: str) -> str:
        """Return the URL by which its administrator reaches one of its databases; it holds the password."""
        return f"postgresql://{ADMINISTRATOR}:{self._password}@{self.address}/{database}"

    async def prepare(self) -> None:
        """Wait until it answers, as long as it takes, and make its databases."""
        while True:
            try:
                return await asyncio.to_thread(self._make_databases)
            except psycopg.OperationalError:
                await asyncio.sleep(LOOK_AGAIN)  # the caller sets the limit

    def _make_databases(self) -> None:
        with psycopg.connect(
            self.url("postgres"), autocommit=True, connect_timeout=CONNECT_SECONDS
        ) as connection:
            there = {row[0] for row in connection.execute("SELECT datname FROM pg_database")}
            for name in (CATALOG, OF_APPS):
                if name not in there:
                    connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))

    async def register(self, servers: FleetAsyncStub) -> None:
        """Have the control plane know it, at the address that it has now."""
        server = fleet.DatabaseServer(
            name=f"databaseServers/{SERVER}",
            display_name="PostgreSQL of make up",
            admin_url=self.url(OF_APPS),
        )
        try:
            await servers.CreateDatabaseServer(
                fleet.CreateDatabaseServerRequest(database_server_id=SERVER, database_server=server),
                timeout=CALL_TIMEOUT,
            )
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.ALREADY_EXISTS:
                raise
            await servers.UpdateDatabaseServer(
                fleet.UpdateDatabaseServerRequest(
                    database_server=server, update_mask=FieldMask(paths=["admin_url"])
                ),
                timeout=CALL_TIMEOUT,
            )


def _password(path: Path) -> str:
    """Return the password that is kept in a file, made at the first time."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        made = secrets.token_hex(24)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(made)
        file.flush()
        os.fsync(file.fileno())
    return made
