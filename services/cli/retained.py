"""Commands on data that deleted apps have left on their nodes."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.catalog.v1 import retained_data_pb2 as pb
from services.cli import views
from services.cli.apps import command, confirm
from services.cli.arguments import Timeout, Wait
from services.cli.client import short
from services.cli.errors import CliError, Exit
from services.cli.manifests import assign
from services.cli.session import Session, session_of

retained = typer.Typer(no_args_is_help=False, invoke_without_command=True)

DataArgument = Annotated[
    str,
    typer.Argument(help="Id of the app that left it, its uid, or the full name.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(retained, name="retained", rich_help_panel="Apps")


@retained.callback()
def _retained(
    context: typer.Context,
    filter_text: Annotated[
        str, typer.Option("--filter", "-f", help='AIP-160, such as app = "apps/shop"')
    ] = "",
) -> None:
    """Show what deleted apps have left, a line each; give it to a new app, remove it.

    Example: appsupervisor retained
    """
    if context.invoked_subcommand is None:
        session = session_of(context)
        none = "Nothing matches." if filter_text else "Nothing is retained."
        session.output.many(session.client.retained_data(filter_text), views.RETAINED, none=none)


@retained.command("attach")
def attach(
    context: typer.Context,
    data: DataArgument,
    name: Annotated[str, typer.Argument(help="Id of the new app.", show_default=False)],
    entrypoint: Annotated[
        str, typer.Argument(help="package.module:attribute; as the app before had it when left out.")
    ] = "",
    set_: Annotated[list[str], typer.Option("--set", help="PATH=VALUE of any other field.")] = [],  # noqa: B006
    wait: Wait = True,
    timeout: Timeout = 60.0,
) -> None:
    """Create an app on the data of one that was deleted, on the node that has it.

    Example: appsupervisor retained attach shop wiki
    """
    session = session_of(context)
    found = _the_one(session, data)
    if not entrypoint and not found.entrypoint:
        raise CliError("It is not known which entrypoint the app had: name one.", Exit.USAGE)
    wanted = catalog.App(entrypoint=entrypoint or found.entrypoint)
    if found.database.WhichOneof("kind"):
        wanted.database.CopyFrom(found.database)
    for setting in set_:
        assign(wanted, setting)
    request = pb.AttachRetainedDataRequest(
        name=found.name,
        app=wanted,
        app_id=name.removeprefix("apps/"),
        etag=found.etag,
    )
    command(session, session.client.data.AttachRetainedData, request, wait, timeout)


@retained.command("purge")
def purge(
    context: typer.Context,
    data: DataArgument,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = True,
    timeout: Timeout = 60.0,
) -> None:
    """Remove the data of a deleted app for good.

    Example: appsupervisor retained purge shop --yes
    """
    session = session_of(context)
    found = _the_one(session, data)
    if not yes:
        confirm(session, f"Remove all data that {short(found.app)} left on {found.name.split('/')[3]}?")
    request = pb.PurgeRetainedDataRequest(name=found.name, etag=found.etag, request_id=str(uuid.uuid4()))
    operation = session.client.call(session.client.data.PurgeRetainedData, request)
    if session.finish(operation, wait, timeout) is not None:
        session.output.note(f"What {short(found.app)} had left is removed.")


def _the_one(session: Session, text: str) -> pb.RetainedData:
    """Return the retained data that is meant. Raises CliError where there is none, or are several."""
    if text.startswith("environments/"):
        return session.client.call(session.client.data.GetRetainedData, pb.GetRetainedDataRequest(name=text))
    word = text.removeprefix("apps/").replace('"', "")
    found = list(session.client.retained_data(f'app = "apps/{word}" OR app_uid = "{word}"'))
    if not found:
        raise CliError(
            f"Nothing of {text} is retained.",
            Exit.NOT_FOUND,
            remedy="`appsupervisor retained` lists what is.",
        )
    if len(found) > 1:
        names = "\n".join(f"  {one.name}" for one in found)
        raise CliError(f"{text} has left more than one:\n{names}", Exit.USAGE, remedy="Name one of them.")
    return found[0]
