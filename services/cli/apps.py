"""Commands on one app, from create to delete, and the list of all."""

from __future__ import annotations

import uuid
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from google.longrunning.operations_pb2 import Operation

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.cli import batches, views
from services.cli.arguments import (
    AcceptDataLoss,
    AppArgument,
    DryRun,
    Etag,
    Filter,
    Selector,
    SomeApp,
    Timeout,
    Wait,
    combined,
    key_and_value,
)
from services.cli.client import app_name, is_drain, metadata_of, node_name, short
from services.cli.completion import complete_app
from services.cli.errors import CliError, Exit, from_status
from services.cli.manifests import assign, read_manifests
from services.cli.session import Session, session_of
from services.cli.streams import watch_until

DESCRIBED_EVENTS = 8


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, command in (
        ("create", create), ("get", get), ("list", list_apps), ("describe", describe), ("update", update),
        ("start", start), ("stop", stop), ("restart", restart), ("move", move), ("recover", recover),
        ("delete", delete), ("wait", wait), ("open", open_app),
    ):  # fmt: skip
        app.command(name, rich_help_panel="Apps")(command)


def create(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Id of the new app.", show_default=False)],
    entrypoint: Annotated[str, typer.Argument(help="package.module:attribute", show_default=False)],
    config: Annotated[
        list[str], typer.Option("--config", "-c", help="KEY=VALUE, the value as YAML; may be repeated.")
    ] = [],  # noqa: B006
    env: Annotated[list[str], typer.Option("--env", "-e", help="KEY=VALUE; may be repeated.")] = [],  # noqa: B006
    secret: Annotated[list[str], typer.Option(help="KEY=VALUE or KEY=@FILE; may be repeated.")] = [],  # noqa: B006
    label: Annotated[list[str], typer.Option("--label", "-l", help="KEY=VALUE; may be repeated.")] = [],  # noqa: B006
    replicas: Annotated[int, typer.Option(help="Instances, each on a node of its own; 0 for 1.")] = 0,
    set_: Annotated[list[str], typer.Option("--set", help="PATH=VALUE of any other field.")] = [],  # noqa: B006
    wait: Wait = True,
    timeout: Timeout = 60.0,
    validate_only: DryRun = False,
) -> None:
    """Create an app and start it.

    Example: appsupervisor create wiki notes:create_app --config title=Wiki
    """
    wanted = catalog.App(entrypoint=entrypoint, replicas=replicas)
    for option, field, pairs in (("--env", "env", env), ("--label", "labels", label)):
        for pair in pairs:
            key, value = key_and_value(option, pair)
            getattr(wanted, field)[key] = value
    for pair in secret:
        key, value = key_and_value("--secret", pair)
        wanted.secret_env[key] = _from_file(value)
    if config:
        wanted.config.update(
            {key: yaml.safe_load(value) for key, value in (key_and_value("--config", c) for c in config)}
        )
    for setting in set_:
        assign(wanted, setting)
    request = catalog.CreateAppRequest(
        app_id=name.removeprefix("apps/"), app=wanted, validate_only=validate_only
    )
    session = session_of(context)
    command(session, session.client.catalog.CreateApp, request, wait, timeout)


def get(context: typer.Context, name: AppArgument) -> None:
    """Show one app.

    Example: appsupervisor get shop -o yaml
    """
    session = session_of(context)
    session.output.one(session.client.app(name), views.APPS)


def list_apps(
    context: typer.Context,
    filter_text: Annotated[
        str, typer.Option("--filter", "-f", help='AIP-160, such as state = RUNNING AND labels.tier = "gold"')
    ] = "",
    selector: Selector = "",
    sort: Annotated[str, typer.Option(help="Fields, such as create_time desc.")] = "",
) -> None:
    """List apps, a line each.

    Example: appsupervisor list --filter "state = RUNNING"
    """
    session = session_of(context)
    wanted = combined(filter_text, selector)
    none = "No app matches." if wanted else "There is no app yet. `appsupervisor create` makes one."
    session.output.many(session.client.apps(wanted, sort), views.APPS, none=none)


def describe(context: typer.Context, name: AppArgument) -> None:
    """Show an app on one screen: state, why, instances, figures, newest events, what to do.

    Example: appsupervisor describe shop
    """
    session = session_of(context)
    app = session.client.app(name, full=True)
    session.output.console.print(views.described(app, session.client.events(name, DESCRIBED_EVENTS)))


def update(
    context: typer.Context,
    name: AppArgument,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set", help="PATH=VALUE, the value as YAML; empty for the default.", show_default=False
        ),
    ],
    wait: Wait = True,
    timeout: Timeout = 60.0,
    etag: Etag = "",
    validate_only: DryRun = False,
) -> None:
    """Change fields of an app; what runs is swapped without a lost request.

    Example: appsupervisor update shop --set config.title=Shop --set labels.tier=gold
    """
    wanted = catalog.App(name=app_name(name), etag=etag)
    request = catalog.UpdateAppRequest(validate_only=validate_only)
    request.update_mask.paths.extend(assign(wanted, setting) for setting in set_)
    request.app.CopyFrom(wanted)
    session = session_of(context)
    command(session, session.client.catalog.UpdateApp, request, wait, timeout)


def start(
    context: typer.Context,
    name: SomeApp = "",
    selector: Selector = "",
    filter_text: Filter = "",
    wait: Wait = True,
    timeout: Timeout = 60.0,
    etag: Etag = "",
    accept_data_loss: AcceptDataLoss = False,
) -> None:
    """Start an app that is stopped or has failed; or many apps, as one operation.

    Example: appsupervisor start shop
    """
    session = session_of(context)
    wanted = combined(filter_text, selector)
    if batches.chosen(name, wanted):
        if accept_data_loss:
            raise CliError("--accept-data-loss is of one app: name it.", Exit.USAGE)
        batches.on_many(session, "Start", wanted, wait, timeout)
        return
    request = catalog.StartAppRequest(name=app_name(name), etag=etag, accept_data_loss=accept_data_loss)
    command(session, session.client.catalog.StartApp, request, wait, timeout)


def stop(
    context: typer.Context,
    name: SomeApp = "",
    selector: Selector = "",
    filter_text: Filter = "",
    wait: Wait = True,
    timeout: Timeout = 60.0,
    etag: Etag = "",
) -> None:
    """Stop an app, which nothing but a start starts again; or many apps, as one operation.

    Example: appsupervisor stop --selector tier=gold
    """
    session = session_of(context)
    wanted = combined(filter_text, selector)
    if batches.chosen(name, wanted):
        batches.on_many(session, "Stop", wanted, wait, timeout)
        return
    request = catalog.StopAppRequest(name=app_name(name), etag=etag)
    command(session, session.client.catalog.StopApp, request, wait, timeout)


def restart(
    context: typer.Context,
    name: SomeApp = "",
    selector: Selector = "",
    filter_text: Filter = "",
    wait: Wait = True,
    timeout: Timeout = 60.0,
    etag: Etag = "",
    accept_data_loss: AcceptDataLoss = False,
) -> None:
    """Swap an app's instance for a new one, with the code on disk now; or many apps', as one operation.

    Example: appsupervisor restart shop
    """
    session = session_of(context)
    wanted = combined(filter_text, selector)
    if batches.chosen(name, wanted):
        if accept_data_loss:
            raise CliError("--accept-data-loss is of one app: name it.", Exit.USAGE)
        batches.on_many(session, "Restart", wanted, wait, timeout)
        return
    request = catalog.RestartAppRequest(name=app_name(name), etag=etag, accept_data_loss=accept_data_loss)
    command(session, session.client.catalog.RestartApp, request, wait, timeout)


def move(
    context: typer.Context,
    name: SomeApp = "",
    to: Annotated[
        str,
        typer.Option("--to", help="A node: ID of `default`, ENVIRONMENT/ID, or its name; else any other."),
    ] = "",
    source: Annotated[
        str, typer.Option("--from", help="The node of the replica to move, of an app that has several.")
    ] = "",
    selector: Selector = "",
    filter_text: Filter = "",
    wait: Wait = True,
    timeout: Timeout = 120.0,
    etag: Etag = "",
    validate_only: DryRun = False,
) -> None:
    """Bring an app to another node, without a lost request, and its SQLite database with it; or many apps.

    Example: appsupervisor move shop --to node-2
    """
    session = session_of(context)
    where = {"node": node_name(to) if to else "", "source_node": node_name(source) if source else ""}
    wanted = combined(filter_text, selector)
    if batches.chosen(name, wanted):
        batches.on_many(session, "Move", wanted, wait, timeout, validate_only=validate_only, **where)
        return
    request = catalog.MoveAppRequest(name=app_name(name), etag=etag, validate_only=validate_only, **where)
    command(session, session.client.catalog.MoveApp, request, wait, timeout)


def recover(
    context: typer.Context,
    name: AppArgument,
    accept_data_loss: AcceptDataLoss = False,
    wait: Wait = True,
    timeout: Timeout = 60.0,
    etag: Etag = "",
    validate_only: DryRun = False,
) -> None:
    """Start an app on another node, because its own is lost and it does not go elsewhere by itself.

    Example: appsupervisor recover shop --accept-data-loss
    """
    session = session_of(context)
    request = catalog.RecoverAppRequest(
        name=app_name(name), accept_data_loss=accept_data_loss, etag=etag, validate_only=validate_only
    )
    command(session, session.client.catalog.RecoverApp, request, wait, timeout)


def delete(
    context: typer.Context,
    names: Annotated[
        list[str], typer.Argument(help="Ids of apps.", autocompletion=complete_app, show_default=False)
    ] = [],  # noqa: B006
    file: Annotated[
        list[str],
        typer.Option("--file", "-f", help="Those that documents name; - for stdin.", show_default=False),
    ] = [],  # noqa: B006
    selector: Selector = "",
    filter_text: Filter = "",
    drop: Annotated[
        bool, typer.Option("--drop", help="Remove the data too; without it `retained` lists the data.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    wait: Wait = True,
    timeout: Timeout = 60.0,
) -> None:
    """Delete apps, or all that match as one operation. One that documents name and that isn't there is fine.

    Example: appsupervisor delete wiki --drop --yes
    """
    session = session_of(context)
    policy = catalog.DeleteAppRequest.DROP if drop else catalog.DeleteAppRequest.RETAIN
    wanted = combined(filter_text, selector)
    if wanted and batches.chosen("".join(names + file), wanted):
        if not yes:
            count = sum(1 for _ in session.client.apps(wanted))
            confirm(session, f"Delete {count} app{'s' * (count != 1)}{' with all data' if drop else ''}?")
        batches.on_many(session, "Delete", wanted, wait, timeout, data_policy=policy)
        return
    listed = [manifest.app.name for manifest in read_manifests(file)] if file else []
    doomed = [app_name(name) for name in names] + listed
    if not doomed:
        raise CliError("Name an app, or documents with -f.", Exit.USAGE)
    if (drop or file) and not yes:
        confirm(session, f"Delete {', '.join(map(short, doomed))}{' with all data' if drop else ''}?")
    begun = []
    for name in doomed:
        request = catalog.DeleteAppRequest(
            name=name, data_policy=policy, request_id=str(uuid.uuid4()), allow_missing=name in listed
        )
        begun.append(session.client.call(session.client.catalog.DeleteApp, request))
    for name, operation in zip(doomed, begun, strict=True):
        if session.finish(operation, wait, timeout) is not None:
            session.output.note(f"{short(name)} is deleted{', its data too' if drop else ''}.")


def wait(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            help="An app's id, or operations/ID.", autocompletion=complete_app, show_default=False
        ),
    ],
    for_: Annotated[
        str, typer.Option("--for", help="ready, stopped, deleted, settled, or a state such as RUNNING")
    ] = "settled",
    timeout: Timeout = 60.0,
) -> None:
    """Wait until an app is so, or until an operation is done.

    Example: appsupervisor wait shop --for ready --timeout 30
    """
    session = session_of(context)
    if name.startswith("operations/"):
        done = session.finished(session.client.operation(name), True, timeout)
        assert done is not None
        about = metadata_of(done)
        if is_drain(done):
            session.output.one(session.client.node_result(done), views.NODES)
        elif isinstance(about, fleet.RebalanceEnvironmentMetadata):
            session.output.many(about.moves, views.MOVES, none="Nothing is to be moved.")
            if done.HasField("error"):
                raise from_status(done.error)
        elif about.verb.startswith("batch_"):
            batches.tell(session, about.verb.removeprefix("batch_").capitalize(), done, True, timeout)
        else:
            session.output.one(session.client.result(done), views.APPS)
        return
    app = watch_until(session, name, for_, timeout)
    if app is not None:
        session.output.one(app, views.APPS)


def open_app(context: typer.Context, name: AppArgument) -> None:
    """Open an app's page in the browser, and print its address.

    Example: appsupervisor open shop
    """
    app = session_of(context).client.app(name)
    if not app.uri:
        raise CliError(f"{app.name} has no address: it is {views.state_of(app)}.", Exit.FAILED)
    print(app.uri)  # noqa: T201 - what was asked for
    webbrowser.open(app.uri)


def confirm(session: Session, question: str) -> None:
    """Ask before what cannot be undone. Raises CliError where nobody can answer, or the answer is no."""
    if not session.output.notes.is_terminal:
        raise CliError(f"{question} Say --yes where nobody can be asked.", Exit.USAGE)
    if not typer.confirm(question, err=True):
        raise CliError("Nothing was done.", Exit.FAILED)


def command(
    session: Session, method: Callable[..., Operation], request: Any, wait: bool, timeout: float
) -> None:
    """Call a method that changes an app, and show the app once that is done."""
    # An id, so that gRPC may repeat a call whose answer was lost without its being carried out twice.
    request.request_id = str(uuid.uuid4())
    operation = session.client.call(method, request)
    app = session.finish(operation, wait or operation.done, timeout)
    if app is not None:
        session.output.one(app, views.APPS)


def _from_file(value: str) -> str:
    if not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text().rstrip("\n")
    except OSError as wrong:
        raise CliError(f"--secret: {value[1:]} cannot be read: {wrong.strerror}", Exit.USAGE) from wrong
