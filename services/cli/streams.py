"""Commands that follow: logs, events, watch, top, and waiting for a state."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC
from enum import StrEnum
from typing import Annotated, Any

import typer
from google.protobuf.json_format import MessageToJson
from rich.live import Live
from rich.table import Table
from rich.text import Text

from appsupervisor.catalog.v1 import app_catalog_pb2 as catalog
from appsupervisor.runtime.v1.runtime_environment_pb2 import (
    Condition,
    Instance,
    InstanceFigures,
    LogEntry,
)
from services.cli import views
from services.cli.arguments import AppArgument, combined
from services.cli.client import app_name, short
from services.cli.completion import complete_app
from services.cli.errors import CliError, Exit
from services.cli.output import Column, Format, M, styled
from services.cli.session import Session, session_of

LOOK_SECONDS = 1.0
SHOWN_APPS = 200
"""Lines of a live table: more than a screen has, few enough to draw each second."""


class TopOrder(StrEnum):
    """What `top --sort` takes."""

    REQUESTS = "requests"
    LATENCY = "latency"
    ERRORS = "errors"
    CPU = "cpu"
    MEMORY = "memory"


_TOP_ORDERS: dict[TopOrder, Callable[[InstanceFigures], float]] = {
    TopOrder.REQUESTS: lambda figures: figures.requests_per_second,
    TopOrder.LATENCY: lambda figures: figures.latency_p99.ToNanoseconds(),
    TopOrder.ERRORS: lambda figures: figures.error_count,
    TopOrder.CPU: lambda figures: figures.cpu_time.ToNanoseconds(),
    TopOrder.MEMORY: lambda figures: figures.memory_bytes,
}


def register(app: typer.Typer) -> None:
    """Add the commands to the program."""
    for name, command in (("logs", logs), ("events", events), ("watch", watch), ("top", top)):
        app.command(name, rich_help_panel="Look")(command)


def logs(
    context: typer.Context,
    name: AppArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    tail: Annotated[int, typer.Option(help="Only the newest so many lines; -1 for all.")] = -1,
    instance: Annotated[str, typer.Option(help="Only of this instance.")] = "",
) -> None:
    """Show what an app has printed and logged, of several replicas each line with its instance.

    Example: appsupervisor logs shop --tail 20
    """
    session = session_of(context)
    request = catalog.TailAppLogsRequest(name=app_name(name), follow=follow)
    if tail >= 0:
        request.tail_line_count = tail
    if instance:
        request.instance = f"{app_name(name)}/instances/{short(instance)}"
    app = session.client.app(name)
    named = app.replicas > 1 or app.HasField("autoscale")
    for message in session.client.stream(session.client.catalog.TailAppLogs, request):
        if message.type == catalog.TailAppLogsResponse.GAP:
            session.output.note(f"… {message.dropped_count or 'some'} lines are missing here …")
        for entry in message.entries:
            _show_line(session, entry, named=named)


def events(
    context: typer.Context,
    name: Annotated[
        str, typer.Argument(help="The app's id; `-` for all apps.", autocompletion=complete_app)
    ] = "-",
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes.")] = False,
    limit: Annotated[int, typer.Option(help="The newest so many.", min=0, max=1000)] = 20,
    filter_text: Annotated[
        str, typer.Option("--filter", help='AIP-160, such as actor != system AND type = "Updated"')
    ] = "",
) -> None:
    """Show an app's timeline, or all apps', oldest first.

    Example: appsupervisor events shop --limit 5
    """
    session = session_of(context)
    columns = views.ALL_EVENTS if name == "-" else views.EVENTS
    none = "Nothing has happened yet."
    if name != "-" and not (follow or filter_text):
        session.output.many(reversed(session.client.events(name, max(limit, 1))), columns, none=none)
        return
    if name != "-":
        session.client.events(name, 1)  # says so if there is no such app, and never was
    request = catalog.WatchAppEventsRequest(parent=app_name(name), filter=filter_text, tail_count=limit)
    first: list[catalog.AppEvent] | None = []
    for message in _resumed(session, session.client.catalog.WatchAppEvents, request):
        if message.type == catalog.WatchAppEventsResponse.SYNCED and first is not None:
            session.output.many(first, columns, none=none)
            first = None
            if not follow:
                return
        elif message.HasField("app_event"):
            if first is not None:
                first.append(message.app_event)
            else:
                session.output.many([message.app_event], columns, headed=False)


def watch(
    context: typer.Context,
    filter_text: Annotated[str, typer.Option("--filter", "-f", help="AIP-160, as in list.")] = "",
    selector: Annotated[str, typer.Option("--selector", "-l", help="KEY=VALUE of labels")] = "",
) -> None:
    """Show apps as they change: a live table on a terminal, a line per change elsewhere.

    Example: appsupervisor watch --filter "state != RUNNING"
    """
    session = session_of(context)
    changes = _changes(session, combined(filter_text, selector))
    if not session.output.console.is_terminal or session.output.form is not Format.TABLE:
        for app, gone in changes:
            if app is not None:
                state = "GONE" if gone else views.state_of(app)
                print(f"{short(app.name)}\t{state}\t{views.health_of(app)}\t{app.generation}", flush=True)  # noqa: T201
        return
    apps: dict[str, catalog.App] = {}
    with Live(console=session.output.console, auto_refresh=False) as live:
        for app, gone in changes:
            if app is not None:
                if gone:
                    apps.pop(app.name, None)
                else:
                    apps[app.name] = app
            live.update(_table(apps), refresh=True)


def top(
    context: typer.Context,
    filter_text: Annotated[str, typer.Option("--filter", "-f", help="AIP-160, as in list.")] = "",
    selector: Annotated[str, typer.Option("--selector", "-l", help="KEY=VALUE of labels")] = "",
    sort: Annotated[TopOrder, typer.Option(help="What comes first.")] = TopOrder.REQUESTS,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.5)] = 2.0,
) -> None:
    """Show the figures of what runs, the busiest first: a live table on a terminal, one table elsewhere.

    Example: appsupervisor top --once --sort memory
    """
    session = session_of(context)
    wanted = combined(filter_text, selector)

    def look() -> list[Instance]:
        running = [
            one
            for app in session.client.apps(wanted, full=True)
            for one in app.instances
            if one.state == Instance.RUNNING
        ]
        return sorted(running, key=lambda one: (-_TOP_ORDERS[sort](one.figures), one.name))

    if once or not session.output.console.is_terminal or session.output.form is not Format.TABLE:
        session.output.many(look(), views.INSTANCES, none="Nothing runs.")
        return
    with Live(console=session.output.console, auto_refresh=False, screen=True) as live:
        while True:
            try:
                live.update(_live_table(look(), views.INSTANCES), refresh=True)
            except CliError as broken:
                if broken.code is not Exit.UNREACHABLE:
                    raise
                live.update(Text(f"{broken.sentence} Trying again."), refresh=True)
            time.sleep(interval)


def watch_until(session: Session, name: str, what: str, timeout: float) -> catalog.App | None:
    """Follow an app until it is so, at most `timeout` seconds; None once it is gone, if that was waited for.

    Raises CliError: TIMED_OUT; FAILED when it failed and nothing more is done about it; NOT_FOUND.
    """
    is_so = _condition(what)
    deadline = time.monotonic() + timeout
    name = app_name(name)
    last: catalog.App | None = None
    while True:
        try:
            last = session.client.app(name)
        except CliError as missing:
            if missing.code is Exit.NOT_FOUND and what == "deleted":
                return None
            raise
        if is_so(last):
            return last
        if last.state == Instance.FAILED and not last.reconciling and what != "deleted":
            raise CliError(f"{name} is FAILED: {views.why(last)}", Exit.FAILED, remedy=views.todo(last))
        if time.monotonic() >= deadline:
            raise CliError(
                f"{name} is {views.state_of(last)} after {timeout:g} s. {views.why(last)}".strip(),
                Exit.TIMED_OUT,
            )
        time.sleep(min(0.2, max(0.01, deadline - time.monotonic())))


def _condition(what: str) -> Callable[[catalog.App], bool]:
    known = {
        "ready": _is_ready,
        "settled": _is_settled,
        "stopped": lambda app: app.state == Instance.STOPPED,
        "deleted": lambda _: False,
    }
    if what.lower() in known:
        return known[what.lower()]
    if what.upper() in Instance.State.keys():  # noqa: SIM118 - an enum, not a dict
        state = Instance.State.Value(what.upper())
        return lambda app: app.state == state
    states = ", ".join(word for word in Instance.State.keys() if word != "STATE_UNSPECIFIED")  # noqa: SIM118
    raise CliError(f"--for {what!r}: one of {', '.join(known)}, or a state: {states}", Exit.USAGE)


def _is_ready(app: catalog.App) -> bool:
    """Tell whether an app serves in its newest version."""
    return (
        any(one.type == "Ready" and one.status == Condition.MET for one in app.conditions)
        and not app.reconciling
    )


def _is_settled(app: catalog.App) -> bool:
    """Tell whether nothing is being done about an app any more."""
    return not app.reconciling and app.state != Instance.DELETING


def _changes(session: Session, filter_text: str) -> Iterator[tuple[catalog.App | None, bool]]:
    """Yield each app as it changes, and whether it is gone; (None, False) when the snapshot is complete.

    A stream that breaks is taken up where it was; what happened meanwhile is told.
    """
    request = catalog.WatchAppsRequest(filter=filter_text)
    for message in _resumed(session, session.client.catalog.WatchApps, request):
        if message.HasField("app"):
            yield message.app, message.type == catalog.WatchAppsResponse.REMOVE
        elif message.type == catalog.WatchAppsResponse.SYNCED:
            yield None, False


def _resumed(session: Session, method: Callable[..., Any], request: Any) -> Iterator[Any]:
    """Yield a watch's messages for ever; one that breaks goes on after the last one that bore a token.

    Raises CliError when it is refused.
    """
    while True:
        try:
            for message in session.client.stream(method, request):
                if message.resume_token:
                    request.resume_token = message.resume_token
                    if isinstance(request, catalog.WatchAppEventsRequest):
                        request.ClearField("tail_count")  # what it began with has been told
                yield message
        except CliError as broken:
            if broken.reason == "RESUME_TOKEN_EXPIRED":
                session.output.note("Some of what happened meanwhile is forgotten, and is missing here.")
                request.resume_token = ""
            elif broken.code is not Exit.UNREACHABLE:
                raise
            else:
                session.output.note(f"{broken.sentence} Trying again.")
                time.sleep(LOOK_SECONDS)


def _show_line(session: Session, entry: LogEntry, *, named: bool) -> None:
    """Show one line; `named` with the instance that it is of."""
    if session.output.form is Format.JSON:
        print(MessageToJson(entry, indent=None, preserving_proto_field_name=True), flush=True)  # noqa: T201
        return
    when = entry.log_time.ToDatetime(UTC).astimezone().strftime("%H:%M:%S.%f")[:-3]
    level = LogEntry.Level.Name(entry.level)
    message = "".join(c if c.isprintable() or c in "\t\n" else f"\\x{ord(c):02x}" for c in entry.text)
    source = (f"{short(entry.instance)} ", "dim") if named else ""
    line = Text.assemble((when, "dim"), " ", (f"{level:<7}", _LEVELS.get(level, "")), " ", source, message)
    session.output.console.print(line)


_LEVELS = {"WARNING": "yellow", "SEVERE": "red", "CRITICAL": "bold red", "VERBOSE": "dim"}


def _table(apps: dict[str, catalog.App]) -> Table:
    return _live_table([apps[name] for name in sorted(apps)], views.APPS)


def _live_table(rows: Sequence[M], columns: Sequence[Column[M]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    shown = [column for column in columns if not column.wide]
    for column in shown:
        table.add_column(column.title)
    for row in rows[:SHOWN_APPS]:
        table.add_row(*(styled(column.text(row)) for column in shown))
    if len(rows) > SHOWN_APPS:
        table.add_row(f"… and {len(rows) - SHOWN_APPS} more")
    return table
