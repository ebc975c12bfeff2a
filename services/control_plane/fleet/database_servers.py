"""Database servers: the commands and questions about where apps have databases of their own.

Nothing here connects to one: the leader asks them how they are, and the reconciler makes databases.
"""

from __future__ import annotations

import secrets
import uuid
from dataclasses import replace

from appsupervisor.fleet.v1 import fleet_pb2 as pb
from services.control_plane.catalog.idempotency import execute
from services.control_plane.catalog.pages import page_by_name, request_digest
from services.control_plane.rules.etags import app_etag, check_etag
from services.control_plane.rules.fleet_rules import database_server_violations
from services.control_plane.rules.names import (
    database_server_name,
    parse_database_server_name,
    validate_id,
)
from services.control_plane.rules.sentences import counted
from services.control_plane.rules.sizes import check_sizes
from services.control_plane.store.interface import CatalogStore, Transaction
from services.control_plane.store.records import DatabaseServerRecord, timestamp
from services.rpc.errors import SupervisorError, Violation, invalid_fields
from services.rpc.pipeline.call import Caller

SET_BY_USERS = (
    "display_name",
    "labels",
    "admin_url",
    "max_apps",
    "app_connections",
    "spare_databases",
    "app_address",
    "allowed_extensions",
    "templates",
)
DEFAULT_MAX_APPS = 1_000
DEFAULT_CONNECTIONS = 5
KEY_BYTES = 32


class DatabaseServers:
    """Answers what is asked and told about database servers."""

    def __init__(self, store: CatalogStore) -> None:
        self._store = store
        self._mirror = store.mirror

    async def create(self, request: pb.CreateDatabaseServerRequest, caller: Caller) -> pb.DatabaseServer:
        """Carry out CreateDatabaseServer."""
        given = request.database_server
        check_sizes(given, "database_server")
        name = database_server_name(request.database_server_id)
        violations = validate_id("database_server_id", request.database_server_id, reserved=False)
        if given.name not in ("", name):
            rule = f"must be empty or {name!r}, after database_server_id"
            violations.append(Violation("database_server.name", rule))
        violations += database_server_violations(given)
        if violations:
            raise invalid_fields(violations)
        # Outside of the command, which may be run again.
        uid, key = str(uuid.uuid4()), secrets.token_bytes(KEY_BYTES)

        def run(tx: Transaction) -> pb.DatabaseServer:
            if tx.database_server(name) is not None:
                raise SupervisorError(
                    "DATABASE_SERVER_ALREADY_EXISTS", f"{name} exists already.", resource=name
                )
            server = _complete(given)
            server.name, server.uid = name, uid
            server.state, server.state_reason = pb.DatabaseServer.PENDING, "It has not yet been asked."
            server.create_time.CopyFrom(timestamp(tx.now))
            server.update_time.CopyFrom(timestamp(tx.now))
            server.etag = app_etag(uid, tx.revision, tx.history)
            tx.put_database_server(DatabaseServerRecord(server, given.admin_url, key))
            return server

        return await execute(
            self._store, caller, request, pb.DatabaseServer, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip

    def get(self, request: pb.GetDatabaseServerRequest) -> pb.DatabaseServer:
        """Carry out GetDatabaseServer."""
        name = database_server_name(parse_database_server_name(request.name))
        record = self._mirror.database_servers.get(name)
        if record is None:
            raise database_server_not_found(name)
        return self._with_count(record)

    def list_servers(self, request: pb.ListDatabaseServersRequest) -> pb.ListDatabaseServersResponse:
        """Carry out ListDatabaseServers."""
        page, token = page_by_name(
            lambda after: (self._with_count(it) for it in self._mirror.database_servers.values(after)),
            lambda server: server.name,
            pb.DatabaseServer.ByteSize,
            size=request.page_size,
            token=request.page_token,
            digest=request_digest("databaseServers"),
        )
        return pb.ListDatabaseServersResponse(database_servers=page, next_page_token=token)

    async def update(self, request: pb.UpdateDatabaseServerRequest, caller: Caller) -> pb.DatabaseServer:
        """Carry out UpdateDatabaseServer."""
        given = request.database_server
        check_sizes(given, "database_server")
        name = database_server_name(parse_database_server_name(given.name, "database_server.name"))
        paths = _paths(request)

        def run(tx: Transaction) -> pb.DatabaseServer:
            record = _existing(tx, name, given.etag)
            wanted = pb.DatabaseServer()
            wanted.CopyFrom(record.server)
            wanted.admin_url = record.admin_url
            taken = pb.DatabaseServer()
            taken.CopyFrom(given)
            for field, _ in given.ListFields():
                if field.name not in paths:
                    taken.ClearField(field.name)  # type: ignore[arg-type]
            for path in paths:
                wanted.ClearField(path)  # type: ignore[arg-type]
            wanted.MergeFrom(taken)
            if violations := database_server_violations(wanted):
                raise invalid_fields(violations)
            server = _complete(wanted)
            if (server, wanted.admin_url) == (record.server, record.admin_url):
                return server
            server.update_time.CopyFrom(timestamp(tx.now))
            server.etag = app_etag(server.uid, tx.revision, tx.history)
            tx.put_database_server(replace(record, server=server, admin_url=wanted.admin_url))
            return server

        updated = await execute(
            self._store, caller, request, pb.DatabaseServer, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip
        updated.app_count = self._mirror.count_on_server(name)
        return updated

    async def delete(self, request: pb.DeleteDatabaseServerRequest, caller: Caller) -> None:
        """Carry out DeleteDatabaseServer."""
        name = database_server_name(parse_database_server_name(request.name))

        def run(tx: Transaction) -> pb.DatabaseServer:
            record = _existing(tx, name, request.etag)
            apps = tx.count_apps_on_server(name)
            if apps:
                raise SupervisorError(
                    "DATABASE_SERVER_IN_USE",
                    f"{name} has the databases of {counted(apps, 'app')}: move or delete them first. ListApps"
                    f' with the filter database.postgres.server = "{name}" names them.',
                    resource=name,
                    metadata={"apps": str(apps)},
                )
            for it in self._mirror.environments.values(""):
                if it.environment.app_defaults.database_server == name:
                    raise SupervisorError(
                        "DATABASE_SERVER_IN_USE",
                        f"{it.name} names {name} as the default of its apps; name another one there first.",
                        resource=name,
                        metadata={"environment": it.name},
                    )
            tx.delete_database_server(name)
            return record.server

        await execute(
            self._store, caller, request, pb.DatabaseServer, run,
            request_id=request.request_id, validate_only=request.validate_only,
        )  # fmt: skip

    def _with_count(self, record: DatabaseServerRecord) -> pb.DatabaseServer:
        shown = pb.DatabaseServer()
        shown.CopyFrom(record.server)
        shown.app_count = self._mirror.count_on_server(record.name)
        return shown


def _complete(given: pb.DatabaseServer) -> pb.DatabaseServer:
    """Return a copy as it is kept and shown: with its defaults, without its secret and its count."""
    server = pb.DatabaseServer()
    server.CopyFrom(given)
    server.DiscardUnknownFields()
    server.admin_url, server.app_count = "", 0
    server.max_apps = server.max_apps or DEFAULT_MAX_APPS
    server.app_connections = server.app_connections or DEFAULT_CONNECTIONS
    return server


def _paths(request: pb.UpdateDatabaseServerRequest) -> list[str]:
    """Return the fields that an update takes. Raises INVALID_FIELD with each that none can take."""
    paths = list(request.update_mask.paths)
    if paths == ["*"]:
        # What was read back has no secret in it: it is kept.
        return [path for path in SET_BY_USERS if path != "admin_url" or request.database_server.admin_url]
    if not paths:
        return [field.name for field, _ in request.database_server.ListFields() if field.name in SET_BY_USERS]
    known = ", ".join(SET_BY_USERS)
    violations = [
        Violation("update_mask", f"{path[:64]!r} cannot be set; {known} can")
        for path in paths
        if path not in SET_BY_USERS
    ]
    if violations:
        raise invalid_fields(violations)
    return paths


def _existing(tx: Transaction, name: str, etag: str) -> DatabaseServerRecord:
    record = tx.database_server(name)
    if record is None:
        raise database_server_not_found(name)
    check_etag(etag, record.server.etag, name)
    return record


def database_server_not_found(name: str) -> SupervisorError:
    """Return the error for a database server that isn't in the catalog."""
    return SupervisorError("DATABASE_SERVER_NOT_FOUND", f"{name} does not exist.", resource=name)
