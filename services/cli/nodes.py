"""Commands on nodes: what there is, and what an operator does to them."""

from __future__ import annotations

import uuid
from typing import Annotated

import typer
from google.longrunning.operations_pb2 import Operation

from appsupervisor.fleet.v1 import fleet_pb2 as fleet
from services.cli import views
from services.cli.apps import confirm
from services.cli.arguments import AppArgument, DryRun, Etag, Wait
from services.cli.client import app_name, drain_of, environment_name, node_name, rebalance_of
from services.cli.errors import from_status
from services.cli.output import Format
from services.cli.session import session_of

nodes = typer.Typer(no_args_is_help=False, invoke_without_command=True)

NodeArgument = Annotated[
    str,
    typer.Argument(help="ID of `default`, or ENVIRONMENT/ID, or the whole name.", show_default=False),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    app.add_typer(nodes, name="nodes", rich_help_panel="Fleet")
    app.command("explain", rich_help_panel="Fleet")(explain)
    app.command("rebalance", rich_help_panel="Fleet")(rebalance)


@nodes.callback()
def _nodes(
    context: typer.Context,
    environment: Annotated[str, typer.Option(help="Only of this environment; - for all.")] = "-",
) -> None:
    """Show nodes, a line each; cordon, drain and delete them.

    Example: appsupervisor nodes -o wide
    """
    if context.invoked_subcommand is None:
        session = session_of(context)
        none = "There is no node yet. `appsupervisor node --control-plane …` starts one."
        session.output.many(session.client.nodes(environment), views.NODES, none=none)


@nodes.command("get")
def get_node(context: typer.Context, name: NodeArgument) -> None:
    """Show one node.

    Example: appsupervisor nodes get node-1
    """
    session = session_of(context)
    request = fleet.GetNodeRequest(name=node_name(name))
    session.output.one(session.client.call(session.client.fleet.GetNode, request), views.NODES)


@nodes.command("cordon")
def cordon(context: typer.Context, name: NodeArgument, etag: Etag = "") -> None:
    """Keep further apps off a node; what is on it goes on.

    Example: appsupervisor nodes cordon node-1
    """
    session = session_of(context)
    request = fleet.CordonNodeRequest(name=node_name(name), etag=etag, request_id=str(uuid.uuid4()))
    session.output.one(session.client.call(session.client.fleet.CordonNode, request), views.NODES)


@nodes.command("uncordon")
def uncordon(context: typer.Context, name: NodeArgument, etag: Etag = "") -> None:
    """Let apps be placed on a node again. A drain of it that goes on is ended.

    Example: appsupervisor nodes uncordon node-1
    """
    session = session_of(context)
    request = fleet.UncordonNodeRequest(name=node_name(name), etag=etag, request_id=str(uuid.uuid4()))
    session.output.one(session.client.call(session.client.fleet.UncordonNode, request), views.NODES)


@nodes.command("drain")
def drain(
    context: typer.Context,
    name: NodeArgument,
    wait: Wait = True,
    timeout: Annotated[float, typer.Option(help="Seconds after which it is given up.", min=1)] = 600.0,
    validate_only: DryRun = False,
) -> None:
    """Cordon a node and move the apps on it to others; tells of each that stays why.

    Example: appsupervisor nodes drain node-1 --timeout 300
    """
    session = session_of(context)
    request = fleet.DrainNodeRequest(
        name=node_name(name), request_id=str(uuid.uuid4()), validate_only=validate_only
    )
    request.timeout.FromMilliseconds(int(timeout * 1000))
    operation = session.client.call(session.client.fleet.DrainNode, request)
    told: set[str] = set()

    def meanwhile(now: Operation) -> None:
        for app in drain_of(now).app_results:
            waits = f"{app.app} waits: {app.message}"
            if app.state == fleet.DrainNodeMetadata.AppResult.WAITING and waits not in told:
                told.add(waits)
                session.output.note(waits)

    done = session.finished(operation, wait or operation.done, timeout + 5, meanwhile)
    if done is None:
        return
    for app in drain_of(done).app_results:
        session.output.note(f"{app.app}: {app.message}")
    session.output.one(session.client.node_result(done), views.NODES)


@nodes.command("delete")
def delete(
    context: typer.Context,
    name: NodeArgument,
    force: Annotated[
        bool, typer.Option("--force", help="Give up the data that apps have on it and nowhere else.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    etag: Etag = "",
    validate_only: DryRun = False,
) -> None:
    """Forget a node that is gone; apps without data on it are placed elsewhere.

    Example: appsupervisor nodes delete node-1
    """
    session = session_of(context)
    if force and not (yes or validate_only):
        confirm(session, f"Delete {name}, with the data that apps have only there?")
    request = fleet.DeleteNodeRequest(
        name=node_name(name),
        force=force,
        etag=etag,
        request_id=str(uuid.uuid4()),
        validate_only=validate_only,
    )
    session.client.call(session.client.fleet.DeleteNode, request)
    session.output.note(f"{node_name(name)} {'could be' if validate_only else 'is'} deleted.")


def rebalance(
    context: typer.Context,
    environment: Annotated[str, typer.Argument(help="ID of the environment.")] = "default",
    tolerance: Annotated[
        int, typer.Option(help="So many apps more than another a node may keep.", min=1, max=10_000)
    ] = 1,
    max_moves: Annotated[int, typer.Option(help="The most moves.", min=1, max=1_000)] = 1_000,
    wait: Wait = True,
    timeout: Annotated[float, typer.Option(help="Seconds after which it is given up.", min=1)] = 600.0,
    validate_only: DryRun = False,
) -> None:
    """Even out how many apps the nodes of an environment have, then how much memory those may use.

    With --validate-only it shows its plan, and moves nothing.

    Example: appsupervisor rebalance staging --validate-only
    """
    session = session_of(context)
    request = fleet.RebalanceEnvironmentRequest(
        name=environment_name(environment),
        app_count_tolerance=tolerance,
        max_moves=max_moves,
        request_id=str(uuid.uuid4()),
        validate_only=validate_only,
    )
    request.timeout.FromMilliseconds(int(timeout * 1000))
    operation = session.client.call(session.client.fleet.RebalanceEnvironment, request)
    done = session.finished(operation, wait or operation.done, timeout + 5)
    if done is None:
        return
    session.output.many(rebalance_of(done).moves, views.MOVES, none="Nothing is to be moved.")
    if done.HasField("error"):
        raise from_status(done.error)


def explain(context: typer.Context, name: AppArgument) -> None:
    """Tell of each node why it would take an app, or why not and what would have to change.

    Example: appsupervisor explain shop
    """
    session = session_of(context)
    request = fleet.ExplainPlacementRequest(app=app_name(name))
    answer = session.client.call(session.client.fleet.ExplainPlacement, request)
    if session.output.form in (Format.JSON, Format.YAML):
        session.output.one(answer, ())
        return
    if session.output.form is Format.NAME:
        print(answer.node)  # noqa: T201 - what was asked for
        return
    chosen = f"{answer.node}: {answer.message}" if answer.node else answer.message
    session.output.note(f"Would go to {chosen}" if answer.node else chosen)
    if answer.bound_reason:
        session.output.note(f"Stays on {', '.join(answer.current_nodes)} ({answer.bound_reason}).")
    session.output.many(answer.verdicts, views.VERDICTS, none="Its environment has no node.")
