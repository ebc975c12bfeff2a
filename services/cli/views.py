"""The columns of tables, and the page that `describe` shows. Pure: messages in, text out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from google.longrunning.operations_pb2 import Operation
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from appsupervisor.catalog.v1.app_catalog_pb2 import App, AppEvent
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1.fleet_pb2 import Environment, ExplainPlacementResponse, Node, PlannedMove
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, InstanceSpec
from services.cli.client import metadata_of, short, subject_of
from services.cli.output import Column, M, age, milliseconds, size, styled

SHORT_DIGEST = 12
"""Digits of a digest that people are shown."""


def state_of(app: App) -> str:
    """Return an app's state as one word."""
    return Instance.State.Name(app.state)


def health_of(app: App | Instance) -> str:
    """Return health as one word; `-` where nothing runs."""
    rests = app.state in (Instance.STOPPED, Instance.PENDING, Instance.FAILED)
    return "-" if rests or not app.health else Instance.Health.Name(app.health)


def why(app: App) -> str:
    """Return why an app is not well, one line; empty when it is."""
    for condition in app.conditions:
        if condition.status == Condition.UNMET and condition.message:
            return condition.message.splitlines()[0]
    return ""


APPS: Sequence[Column[App]] = (
    Column("NAME", lambda app: short(app.name)),
    Column("STATE", state_of),
    Column("HEALTH", health_of),
    Column("GEN", lambda app: str(app.generation)),
    Column("NODE", lambda app: ",".join(sorted({short(i.node) for i in app.instances})) or "-"),
    Column("AGE", lambda app: age(app.create_time)),
    Column("URI", lambda app: app.uri or "-"),
    Column("ENVIRONMENT", lambda app: short(app.environment), wide=True),
    Column("READY", lambda app: f"{app.ready_replicas}/{app.target_replicas or app.replicas}", wide=True),
    Column("TIER", lambda app: ",".join(sorted({_tier(i) for i in app.instances})) or "-", wide=True),
    Column("CODE", lambda app: ",".join(sorted({code_of(i) for i in app.instances})) or "-", wide=True),
    Column("ENTRYPOINT", lambda app: app.entrypoint, wide=True),
    Column(
        "LABELS", lambda app: ",".join(f"{k}={v}" for k, v in sorted(app.labels.items())) or "-", wide=True
    ),
    Column("WHY", why, wide=True),
)


def _lease(node: Node) -> str:
    state = node.lease_state
    if state == Node.LEASE_STATE_UNSPECIFIED:
        return "-"
    return Node.LeaseState.Name(state) + (" (alone)" if node.serves_alone else "")


def _takes_apps(node: Node) -> str:
    return "yes" if node.schedulable else "cordoned" if node.cordoned else "no"


NODES: Sequence[Column[Node]] = (
    Column("NAME", lambda node: short(node.name)),
    Column("ENVIRONMENT", lambda node: node.name.split("/")[1]),
    Column("STATE", lambda node: Node.State.Name(node.state)),
    Column("TAKES APPS", _takes_apps),
    Column("LEASE", _lease),
    Column("APPS", lambda node: str(node.app_count)),
    Column("ADDRESS", lambda node: node.address),
    Column("HTTP", lambda node: node.http_address),
    Column("VERSION", lambda node: node.version),
    Column("AGE", lambda node: age(node.create_time)),
    Column("ZONE", lambda node: node.zone or "-", wide=True),
    Column("MEMORY", lambda node: size(node.memory_bytes), wide=True),
    Column("USED", lambda node: size(node.used_memory_bytes), wide=True),
    Column("RESERVED", lambda node: size(node.reserved_memory_bytes), wide=True),
    Column(
        "LABELS", lambda node: ",".join(f"{k}={v}" for k, v in sorted(node.labels.items())) or "-", wide=True
    ),
    Column("WHY", lambda node: node.state_reason, wide=True),
)

VERDICTS: Sequence[Column[ExplainPlacementResponse.Verdict]] = (
    Column("NODE", lambda one: short(one.node)),
    Column("RANK", lambda one: str(one.rank or "-")),
    Column("APPS", lambda one: str(one.app_count)),
    Column("ZONE", lambda one: one.zone or "-"),
    Column("COPIES HERE/ZONE", lambda one: f"{one.copy_count}/{one.zone_copy_count}", wide=True),
    Column("WHY NOT", lambda one: " ".join(it.message for it in one.obstacles) or "-"),
    Column("WHAT WOULD HAVE TO CHANGE", lambda one: " ".join(it.remedy for it in one.obstacles) or "-"),
)

MOVES: Sequence[Column[PlannedMove]] = (
    Column("APP", lambda move: short(move.app)),
    Column("FROM", lambda move: short(move.source_node)),
    Column("TO", lambda move: short(move.destination_node)),
    Column("STATE", lambda move: PlannedMove.State.Name(move.state)),
    Column("WHY", lambda move: move.message),
)

ENVIRONMENTS: Sequence[Column[Environment]] = (
    Column("NAME", lambda environment: short(environment.name)),
    Column("NODES", lambda environment: str(environment.node_count)),
    Column("APPS", lambda environment: str(environment.app_count)),
    Column("CORDONED", lambda environment: "yes" if environment.cordoned else "no", wide=True),
    Column("AGE", lambda environment: age(environment.create_time)),
)

RETAINED: Sequence[Column[RetainedData]] = (
    Column("APP", lambda data: short(data.app)),
    Column("STATE", lambda data: RetainedData.State.Name(data.state)),
    Column("SIZE", lambda data: size(data.size_bytes)),
    Column("DELETED", lambda data: age(data.delete_time)),
    Column("NODE", lambda data: data.name.split("/")[3]),
    Column("ENVIRONMENT", lambda data: data.name.split("/")[1], wide=True),
    Column("UID", lambda data: data.app_uid),
    Column("ENTRYPOINT", lambda data: data.entrypoint or "-", wide=True),
    Column("WHY", lambda data: data.state_reason, wide=True),
)

EVENTS: Sequence[Column[AppEvent]] = (
    Column("AGE", lambda event: age(event.create_time)),
    Column("TYPE", lambda event: event.type),
    Column("REASON", lambda event: event.reason or "-"),
    Column("GEN", lambda event: str(event.generation)),
    Column("BY", lambda event: event.actor),
    Column("MESSAGE", lambda event: (event.message.splitlines() or [""])[0]),
)


def _told(instance: Instance, text: str) -> str:
    return text if instance.HasField("figures") else "-"


def _latency(instance: Instance, field: Literal["latency_p50", "latency_p99", "loop_lag"]) -> str:
    figures = instance.figures
    return milliseconds(getattr(figures, field)) if figures.HasField(field) else "-"


def _seconds(instance: Instance) -> str:
    spent = instance.figures.cpu_time
    return f"{spent.seconds + spent.nanos / 1e9:.1f}" if instance.figures.HasField("cpu_time") else "-"


def code_of(instance: Instance) -> str:
    """Return the first digits of what an instance runs, with a `*` where the disk has other code."""
    if not instance.HasField("code"):
        return "-"
    return instance.code.digest[:SHORT_DIGEST] + ("*" if _met(instance, "CodeChanged") else "")


def _met(one: App | Instance, kind: str) -> bool:
    return any(c.type == kind and c.status == Condition.MET for c in one.conditions)


def _tier(instance: Instance) -> str:
    return InstanceSpec.IsolationTier.Name(instance.isolation) if instance.isolation else "-"


INSTANCES: Sequence[Column[Instance]] = (
    Column("APP", lambda one: one.name.split("/")[1]),
    Column("INSTANCE", lambda one: short(one.name), wide=True),
    Column("NODE", lambda one: short(one.node)),
    Column("TIER", _tier, wide=True),
    Column("REQ/S", lambda one: _told(one, f"{one.figures.requests_per_second:.1f}")),
    Column("IN FLIGHT", lambda one: _told(one, str(one.figures.in_flight_count))),
    Column("QUEUED", lambda one: _told(one, str(one.figures.queued_count)), wide=True),
    Column("P50 MS", lambda one: _latency(one, "latency_p50")),
    Column("P99 MS", lambda one: _latency(one, "latency_p99")),
    Column("REQUESTS", lambda one: _told(one, str(one.figures.request_count))),
    Column("ERRORS", lambda one: _told(one, str(one.figures.error_count))),
    Column("LAG MS", lambda one: _latency(one, "loop_lag")),
    Column("CPU S", _seconds),
    Column("MEMORY", lambda one: size(one.figures.memory_bytes)),
)
"""What `top` and `describe` show: `-` where a node has not told, or cannot tell it from the neighbours'."""

ALL_EVENTS: Sequence[Column[AppEvent]] = (
    EVENTS[0],
    Column("APP", lambda event: event.name.split("/")[1]),
    *EVENTS[1:],
)


OPERATIONS: Sequence[Column[Operation]] = (
    Column("NAME", lambda operation: short(operation.name)),
    Column("ABOUT", subject_of),
    Column("VERB", lambda operation: metadata_of(operation).verb),
    Column("STEP", lambda operation: metadata_of(operation).step),
    Column("DONE", lambda operation: f"{metadata_of(operation).progress_percent}%"),
    Column("AGE", lambda operation: age(metadata_of(operation).create_time)),
    Column("ERROR", lambda operation: (operation.error.message.splitlines() or [""])[0]),
)


def described(app: App, events: Iterable[AppEvent]) -> RenderableType:
    """Return an app on one screen: what it is, why it is so, and what to do."""
    parts: list[RenderableType] = [_facts(app)]
    if app.conditions:
        parts += [Text("\nConditions", style="bold"), _conditions(app)]
    if app.instances:
        parts += [Text("\nInstances", style="bold"), _instances(app)]
        measured = [one for one in app.instances if one.HasField("figures")]
        if measured:
            parts += [Text("\nFigures", style="bold"), _rows(INSTANCES[1:], measured)]
    told = list(events)
    if told:
        parts += [Text("\nNewest events", style="bold"), _rows(EVENTS, told)]
    advice = todo(app)
    if advice:
        parts.append(Text(f"\n{advice}", style="bold yellow"))
    return Group(*parts)


_DEFECTS = ("ProbeFailing", "BlockedLoop", "Demoted", "Leaked")
"""Conditions of an instance that lower its health."""


def todo(app: App) -> str:
    """Return what its user may do about an app's state; empty when nothing is wrong."""
    name = short(app.name)
    if app.state == Instance.FAILED:
        return f"It failed. `appsupervisor logs {name}` has the rest; once it is mended, `start {name}`."
    for condition in app.conditions:
        if condition.status != Condition.UNMET:
            continue
        if condition.type == "Updated":
            return (
                f"The version before serves. `appsupervisor update {name} --set FIELD=VALUE` goes back: the "
                f"newest event Updated says what was changed. Code is mended on disk, then `restart {name}`."
            )
        if condition.type == "Scheduled":
            return "No node takes it. `appsupervisor nodes` shows those there are."
    if _met(app, "CodeChanged"):
        return f"Other code is on disk than runs. `appsupervisor restart {name}` loads it."
    for instance in app.instances:
        for condition in instance.conditions:
            if condition.type in _DEFECTS and condition.status == Condition.MET:
                return f"{short(instance.name)}: {condition.message}"
    # Health is UNKNOWN before the first answer to a health check, too.
    if any(it.type == "Ready" and it.reason == "NODE_UNREACHABLE" for it in app.conditions):
        return "Its node cannot be heard. `appsupervisor nodes -o wide` says why."
    return ""


_WHY_AVAILABLE = {
    App.ASKED_FOR: "as the app says",
    App.DATA_ON_NODE: "its data is on its node",
    App.DATABASE_FENCED: "its database refuses a copy that was given up",
    App.WITHOUT_DATABASE: "it has no database",
    App.DATABASE_SHARED: "a second copy could write its database",
    App.ONLY_NODE: "its node is the only one",
}


def _availability(app: App) -> str:
    if not app.effective_availability:
        return "-"
    name = InstanceSpec.Availability.Name(app.effective_availability)
    why = _WHY_AVAILABLE.get(app.availability_reason, "")
    return f"{name}: {why}" if why else name


def _facts(app: App) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    rows = [
        ("Name", Text(app.name)),
        (
            "State",
            Text.assemble(
                styled(state_of(app)),
                "  ",
                styled(health_of(app)),
                "  reconciling" if app.reconciling else "",
            ),
        ),
        ("Address", Text(app.uri or "-")),
        ("Entrypoint", Text(app.entrypoint)),
        ("Generation", Text(f"{app.generation} (carried out: {app.observed_generation})")),
        ("Environment", Text(short(app.environment))),
        ("Activation", Text(InstanceSpec.Activation.Name(app.activation))),
        ("Availability", Text(_availability(app))),
        ("Labels", Text(", ".join(f"{k}={v}" for k, v in sorted(app.labels.items())) or "-")),
        ("Domains", Text(", ".join(app.domains) or "-")),
        ("Created", Text(f"{age(app.create_time)} ago, uid {app.uid}")),
    ]
    for title, text in rows:
        table.add_row(Text(title, style="dim"), text)
    return table


def _conditions(app: App) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    for one in app.conditions:
        table.add_row(one.type, styled(Condition.Status.Name(one.status)), one.reason, one.message)
    return table


def _instances(app: App) -> Table:
    columns: list[Column[Instance]] = [
        Column("NAME", lambda one: short(one.name)),
        Column("STATE", lambda one: Instance.State.Name(one.state)),
        Column("HEALTH", health_of),
        Column("TIER", _tier),
        Column("NODE", lambda one: short(one.node)),
        Column("RESTARTS", lambda one: str(one.restart_count)),
        Column("CODE", code_of),
        Column("CHANGED", lambda one: f"{age(one.code.modify_time)} ago" if one.HasField("code") else "-"),
        Column("LAST ERROR", lambda one: one.last_error.reason or "-"),
    ]
    return _rows(columns, app.instances)


def _rows(columns: Sequence[Column[M]], rows: Iterable[M]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in columns:
        table.add_column(column.title)
    for row in rows:
        table.add_row(*(styled(column.text(row)) for column in columns))
    return table
