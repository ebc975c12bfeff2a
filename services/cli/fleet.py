"""Commands on environments, on operations, and on contexts."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer

from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.cli import views
from services.cli.apps import confirm
from services.cli.arguments import DryRun, Timeout, Wait
from services.cli.batches import tell
from services.cli.client import environment_name, metadata_of, operation_name
from services.cli.contexts import Context, contexts_file, read_contexts, write_contexts
from services.cli.errors import CliError, Exit
from services.cli.manifests import assign
from services.cli.session import Session, session_of

Defaults = Annotated[
    list[str],
    typer.Option(
        "--default",
        help="PATH=VALUE that apps created in it get where they say nothing, such as limits.max_threads=4 "
        "(the value is YAML), or FIELD= for none; may be repeated.",
    ),
]

environments = typer.Typer(no_args_is_help=False, invoke_without_command=True)
operations = typer.Typer(no_args_is_help=False, invoke_without_command=True)
contexts = typer.Typer(no_args_is_help=False, invoke_without_command=True)


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(environments, name="environments", rich_help_panel="Fleet")
    app.add_typer(operations, name="operations", rich_help_panel="Look")
    app.add_typer(contexts, name="contexts", rich_help_panel="Program")


@environments.callback()
def _environments(context: typer.Context) -> None:
    """Show environments, a line each; create, change and delete them.

    Example: appsupervisor environments
    """
    if context.invoked_subcommand is None:
        session = session_of(context)
        session.output.many(session.client.environments(), views.ENVIRONMENTS)


@environments.command("create")
def create_environment(
    context: typer.Context,
    name: str,
    display_name: str = "",
    default: Defaults = [],  # noqa: B006
) -> None:
    """Create an environment.

    Example: appsupervisor environments create staging --default database_server=databaseServers/main
    """
    session = session_of(context)
    request = fleet.CreateEnvironmentRequest(
        environment_id=name,
        environment=fleet.Environment(display_name=display_name),
        request_id=str(uuid.uuid4()),
    )
    for one in default:
        assign(request.environment.app_defaults, one, "--default")
    session.output.one(
        session.client.call(session.client.fleet.CreateEnvironment, request), views.ENVIRONMENTS
    )


@environments.command("update")
def update_environment(
    context: typer.Context,
    name: str,
    display_name: Annotated[str | None, typer.Option(help="A name for people.")] = None,
    label: Annotated[
        list[str], typer.Option("--label", "-l", help="KEY=VALUE, or KEY- to remove it; may be repeated.")
    ] = [],  # noqa: B006
    cordon: Annotated[
        bool | None,
        typer.Option("--cordon/--uncordon", help="Place no app in it or move within it; or do so again."),
    ] = None,
    default: Defaults = [],  # noqa: B006
    etag: Annotated[str, typer.Option(help="Only if this is still its etag.")] = "",
) -> None:
    """Change an environment.

    Example: appsupervisor environments update staging --label tier=gold --cordon
    """
    session = session_of(context)
    request = fleet.UpdateEnvironmentRequest(request_id=str(uuid.uuid4()))
    request.environment.name = environment_name(name)
    request.environment.etag = etag
    if display_name is not None:
        request.environment.display_name = display_name
        request.update_mask.paths.append("display_name")
    if cordon is not None:
        request.environment.cordoned = cordon
        request.update_mask.paths.append("cordoned")
    for one in label:
        key, equals, value = one.partition("=")
        if not equals and not key.endswith("-"):
            raise CliError(f"--label {one!r}: write KEY=VALUE, or KEY- to remove it", Exit.USAGE)
        key = key if equals else key[:-1]
        if equals:
            request.environment.labels[key] = value
        request.update_mask.paths.append(f"labels.`{key}`")
    if default:
        _change_defaults(session, request, default)
    if not request.update_mask.paths:
        options = "--display-name, --label, --default, --cordon, --uncordon"
        raise CliError(f"Say what is to change: {options}.", Exit.USAGE)
    session.output.one(
        session.client.call(session.client.fleet.UpdateEnvironment, request), views.ENVIRONMENTS
    )


def _change_defaults(session: Session, request: fleet.UpdateEnvironmentRequest, settings: list[str]) -> None:
    """Put into a request what the defaults are to be, one setting after the other; as they are read now."""
    read = fleet.GetEnvironmentRequest(name=request.environment.name)
    known = session.client.call(session.client.fleet.GetEnvironment, read)
    request.environment.etag = request.environment.etag or known.etag
    defaults = request.environment.app_defaults
    defaults.CopyFrom(known.app_defaults)
    for one in settings:
        path, _, value = one.partition("=")
        if not value and path in defaults.DESCRIPTOR.fields_by_name:
            defaults.ClearField(path)  # type: ignore[arg-type]
        else:
            assign(defaults, one, "--default")
    request.update_mask.paths.append("app_defaults")


@environments.command("drain")
def drain_environment(
    context: typer.Context,
    name: str,
    wait: Wait = True,
    timeout: Timeout = 600.0,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    validate_only: DryRun = False,
) -> None:
    """Cordon an environment and stop its apps: they cannot leave it.

    `environments update NAME --uncordon` and `start --filter` take it back.

    Example: appsupervisor environments drain staging --yes
    """
    session = session_of(context)
    if not (yes or validate_only):
        confirm(session, f"Stop all apps in {name}?")
    request = fleet.DrainEnvironmentRequest(
        name=environment_name(name), request_id=str(uuid.uuid4()), validate_only=validate_only
    )
    operation = session.client.call(session.client.fleet.DrainEnvironment, request)
    tell(session, "Would stop" if validate_only else "Stop", operation, wait or operation.done, timeout)


@environments.command("delete")
def delete_environment(
    context: typer.Context,
    name: str,
    force: Annotated[
        bool, typer.Option("--force", help="Delete its apps, too; their data stays where it is.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> None:
    """Delete an environment that has no apps, or with --force, and none of whose nodes runs.

    Example: appsupervisor environments delete staging
    """
    session = session_of(context)
    if force and not yes:
        confirm(session, f"Delete {name} with all apps in it?")
    request = fleet.DeleteEnvironmentRequest(
        name=environment_name(name), force=force, request_id=str(uuid.uuid4())
    )
    session.client.call(session.client.fleet.DeleteEnvironment, request)
    session.output.note(f"{name} is deleted.")


@operations.callback()
def _operations(
    context: typer.Context,
    all_: Annotated[bool, typer.Option("--all", help="Those that are done too.")] = False,
) -> None:
    """Show operations that go on, a line each; cancel one.

    Example: appsupervisor operations --all
    """
    if context.invoked_subcommand is None:
        session = session_of(context)
        found = (one for one in session.client.operations() if all_ or not one.done)
        session.output.many(found, views.OPERATIONS, none="Nothing is under way.")


@operations.command("get")
def get_operation(context: typer.Context, name: str) -> None:
    """Show one operation.

    Example: appsupervisor operations get operations/ID
    """
    session = session_of(context)
    session.output.one(session.client.operation(name), views.OPERATIONS)


@operations.command("cancel")
def cancel_operation(context: typer.Context, name: str) -> None:
    """Ask for an operation to be given up. A create or start is taken back by stopping the app.

    Example: appsupervisor operations cancel operations/ID
    """
    session = session_of(context)
    session.client.cancel(name)
    step = metadata_of(session.client.operation(name)).step
    session.output.note(f"{operation_name(name)} is asked to end; it is at: {step}.")


@contexts.callback()
def _contexts(context: typer.Context) -> None:
    """Show named control planes, the one in use with a star; name and choose them.

    Example: appsupervisor contexts
    """
    if context.invoked_subcommand is None:
        known = read_contexts()
        for name, one in sorted(known.contexts.items()):
            print(f"{'*' if name == known.current else ' '} {name}  {one.address}")  # noqa: T201 - what was asked for
        if not known.contexts:
            session_of(context).output.note(
                f"There is none yet ({contexts_file()}); the address is {Context().address}."
            )


@contexts.command("set")
def set_context(
    name: str, address: str, ca: Annotated[str, typer.Option(help="File of the CA's certificates.")] = ""
) -> None:
    """Name a control plane, and use it from now on.

    Example: appsupervisor contexts set local 127.0.0.1:7400
    """
    known = read_contexts()
    known.contexts[name] = Context(address, ca)
    known.current = name
    write_contexts(known)


@contexts.command("use")
def use_context(name: str) -> None:
    """Use another context from now on.

    Example: appsupervisor contexts use local
    """
    known = read_contexts()
    known.chosen(name)
    known.current = name
    write_contexts(known)


@contexts.command("delete")
def delete_context(name: str) -> None:
    """Forget a context.

    Example: appsupervisor contexts delete local
    """
    known = read_contexts()
    if known.contexts.pop(name, None) is None:
        raise CliError(f"There is no context {name!r}.", Exit.NOT_FOUND)
    if known.current == name:
        known.current = ""
    write_contexts(known)
