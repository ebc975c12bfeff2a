"""Commands on the PostgreSQL servers on which apps have databases of their own."""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from google.protobuf.field_mask_pb2 import FieldMask

from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.cli.client import short
from services.cli.errors import CliError, Exit
from services.cli.output import Column, age
from services.cli.session import session_of

ADMIN_URL = "DATABASE_ADMIN_URL"

SERVERS: Sequence[Column[fleet.DatabaseServer]] = (
    Column("NAME", lambda server: short(server.name)),
    Column("STATE", lambda server: fleet.DatabaseServer.State.Name(server.state)),
    Column("APPS", lambda server: f"{server.app_count}/{server.max_apps}"),
    Column("POOL", lambda server: str(server.app_connections)),
    Column("APP ADDRESS", lambda server: server.app_address or "-", wide=True),
    Column("TEMPLATES", lambda server: ", ".join(server.templates) or "-", wide=True),
    Column("SPARES", lambda server: str(server.spare_databases), wide=True),
    Column("VERSION", lambda server: server.server_version or "-"),
    Column("AGE", lambda server: age(server.create_time)),
    Column("WHY", lambda server: server.state_reason or "-", wide=True),
)

database_servers = typer.Typer(no_args_is_help=False, invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(database_servers, name="database-servers", rich_help_panel="Fleet")


@database_servers.callback()
def _database_servers(context: typer.Context) -> None:
    """Show database servers, a line each; register and forget them.

    Example: appsupervisor database-servers -o wide
    """
    if context.invoked_subcommand is None:
        session = session_of(context)
        request = fleet.ListDatabaseServersRequest(page_size=1000)
        page = session.client.call(session.client.fleet.ListDatabaseServers, request)
        session.output.many(page.database_servers, SERVERS, none="None is registered.")


@database_servers.command("create")
def create(
    context: typer.Context,
    name: str,
    max_apps: Annotated[int, typer.Option(help="The most apps that it takes; 0 for 1,000.")] = 0,
    app_connections: Annotated[int, typer.Option(help="Connections of each app's pool; 0 for 5.")] = 0,
    allow_extension: Annotated[
        list[str] | None, typer.Option(help="An extension that apps may ask for; as often as there are.")
    ] = None,
    app_address: Annotated[str, typer.Option(help="host:port for apps, of a PgBouncer.")] = "",
    spare_databases: Annotated[int, typer.Option(help="Databases kept ready for apps of mode DATABASE.")] = 0,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A prepared database that apps may begin as a copy of; as often as there are."),
    ] = None,
) -> None:
    """Register a PostgreSQL server. Its administrator's URL is read from the variable DATABASE_ADMIN_URL.

    Example: appsupervisor database-servers create one
    """
    session = session_of(context)
    url = _admin_url()
    request = fleet.CreateDatabaseServerRequest(
        database_server_id=name,
        database_server=fleet.DatabaseServer(
            admin_url=url,
            max_apps=max_apps,
            app_connections=app_connections,
            app_address=app_address,
            allowed_extensions=allow_extension or [],
            spare_databases=spare_databases,
            templates=template or [],
        ),
        request_id=str(uuid.uuid4()),
    )
    session.output.one(session.client.call(session.client.fleet.CreateDatabaseServer, request), SERVERS)


@database_servers.command("update")
def update(
    context: typer.Context,
    name: str,
    max_apps: Annotated[int | None, typer.Option(help="The most apps that it takes; 0 for 1,000.")] = None,
    app_connections: Annotated[
        int | None, typer.Option(help="Connections of each app's pool; 0 for 5.")
    ] = None,
    allow_extension: Annotated[
        list[str] | None,
        typer.Option(help="An extension that apps may ask for: all of them; '' for none."),
    ] = None,
    app_address: Annotated[str | None, typer.Option(help="host:port for apps, of a PgBouncer.")] = None,
    spare_databases: Annotated[
        int | None, typer.Option(help="Databases kept ready for apps of mode DATABASE.")
    ] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help="A prepared database that apps may begin as a copy of: all of them; '' for none."),
    ] = None,
    admin_url: Annotated[
        bool, typer.Option("--admin-url", help="Take another URL, from the variable DATABASE_ADMIN_URL.")
    ] = False,
) -> None:
    """Change what is said here of a database server.

    Example: appsupervisor database-servers update one --spare-databases 5
    """
    session = session_of(context)
    given: dict[str, Any] = {
        "admin_url": _admin_url() if admin_url else None,
        "max_apps": max_apps,
        "app_connections": app_connections,
        "allowed_extensions": _named(allow_extension),
        "app_address": app_address,
        "spare_databases": spare_databases,
        "templates": _named(template),
    }
    changes = {field: value for field, value in given.items() if value is not None}
    if not changes:
        raise CliError("Say what is to be changed: see --help.", Exit.USAGE)
    request = fleet.UpdateDatabaseServerRequest(
        database_server=fleet.DatabaseServer(name=_full(name), **changes),
        update_mask=FieldMask(paths=changes),
        request_id=str(uuid.uuid4()),
    )
    session.output.one(session.client.call(session.client.fleet.UpdateDatabaseServer, request), SERVERS)


@database_servers.command("delete")
def delete(context: typer.Context, name: str) -> None:
    """Forget a database server on which no app has its database. What is on it stays.

    Example: appsupervisor database-servers delete one
    """
    session = session_of(context)
    request = fleet.DeleteDatabaseServerRequest(name=_full(name))
    session.client.call(session.client.fleet.DeleteDatabaseServer, request)
    session.output.note(f"{name} is forgotten.")


def _admin_url() -> str:
    url = os.environ.get(ADMIN_URL, "")
    if not url:
        # Not a flag: other users of the machine see those.
        raise CliError(f"Set {ADMIN_URL} to postgresql://user:password@host:port/database.", Exit.USAGE)
    return url


def _named(names: list[str] | None) -> list[str] | None:
    """Return the names that a flag was given with, none for an empty one; None if it was not given."""
    return [name for name in names if name] if names else None


def _full(name: str) -> str:
    return name if "/" in name else f"databaseServers/{name}"
