"""What each command changes of an app, in its transaction, with the operation and event that tell of it."""

from __future__ import annotations

from dataclasses import replace

from appsupervisor.catalog.v1 import app_catalog_pb2 as pb
from appsupervisor.catalog.v1.retained_data_pb2 import RetainedData
from appsupervisor.fleet.v1.fleet_pb2 import AppDefaults, Node
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance, InstanceSpec
from services.control_plane.catalog import retention
from services.control_plane.catalog.code_changes import CodeChange
from services.control_plane.operations import database_moves, operations
from services.control_plane.operations.verdicts import READY
from services.control_plane.placement.scale import (
    is_at,
    is_several,
    newest_epoch,
    served_version,
    wanted_replicas,
)
from services.control_plane.rules.app_defaults import normalize_app, runtime_fields_changed
from services.control_plane.rules.app_rules import app_violations
from services.control_plane.rules.conditions import DATABASE_PROVIDED, get_condition, set_condition
from services.control_plane.rules.differences import differences
from services.control_plane.rules.environment_defaults import with_defaults
from services.control_plane.rules.etags import check_etag
from services.control_plane.rules.masks import apply_update
from services.control_plane.rules.sentences import counted, sentences
from services.control_plane.store.interface import Transaction
from services.control_plane.store.random_ids import new_uid
from services.control_plane.store.records import (
    MOVE_DATABASE,
    AppRecord,
    DatabaseServerRecord,
    EnvironmentRecord,
    NodeRecord,
    OperationRecord,
    RetainedDataRecord,
    Role,
    Version,
)
from services.rpc.errors import Code, SupervisorError, Violation, invalid_field, invalid_fields
from services.rpc.pipeline.call import Caller
from services.spec.availability import effective_availability

DEFAULT_BASE_DOMAIN = "localhost"
"""Base domain of a node that was given none."""


def checked_spec(app: pb.App, name: str, violations: list[Violation], defaults: AppDefaults) -> pb.App:
    """Return a new app's spec in full form, under its name; `defaults` are those of its environment.

    Raises INVALID_FIELD with all that is wrong.
    """
    spec = normalize_app(with_defaults(app, defaults))
    spec.name = name
    violations += app_violations(spec)
    if violations:
        raise invalid_fields(violations)
    return spec


def defaults_of(environment: EnvironmentRecord | None) -> AppDefaults:
    """Return what an environment gives its apps where their own fields are not set."""
    return environment.environment.app_defaults if environment is not None else AppDefaults()


def create_app(
    tx: Transaction, spec: pb.App, caller: Caller, data: RetainedDataRecord | None = None
) -> OperationRecord:
    """Store a new app, on retained data if there is some for it, and begin the operation that brings it up.

    Raises SupervisorError APP_ALREADY_EXISTS, ENVIRONMENT_NOT_FOUND, DOMAIN_TAKEN, INVALID_FIELD.
    """
    if tx.app(spec.name) is not None:
        raise SupervisorError("APP_ALREADY_EXISTS", f"{spec.name} exists already.", resource=spec.name)
    if tx.environment(spec.environment) is None:
        raise SupervisorError(
            "ENVIRONMENT_NOT_FOUND",
            f"{spec.environment} does not exist; create it first.",
            code=Code.FAILED_PRECONDITION,
            resource=spec.environment,
        )
    _check_domains(tx, spec)
    _check_database_server(tx, spec)
    wanted = spec.desired_state != pb.App.STOPPED
    record = AppRecord(
        name=spec.name,
        uid=new_uid(),
        spec=spec,
        status=pb.App(
            state=Instance.PENDING if wanted else Instance.STOPPED,
            health=Instance.Health.UNKNOWN,
            reconciling=wanted or data is not None,
            observed_generation=0 if wanted or data is not None else 1,
            retained_data=data.name if data is not None else "",
        ),
        generation=1,
        target=Version(1, 1),
        create_time=tx.now,
        update_time=tx.now,
    )
    record = tx.put_app(record)
    verb, of = "create", ""
    if data is not None:
        retention.give(tx, data, record)
        verb, of = "attach", f"On what {data.data.app} had left."
    operation = operations.begin(tx, verb, record, caller.actor)
    add_event(tx, record, "Created", actor=caller.actor, operation=operation.name, message=of)
    return operation


def _check_domains(tx: Transaction, spec: pb.App) -> None:
    """Refuse domains that are the own address of some app, `{app}.{base_domain}` of a node."""
    if not spec.domains:  # the nodes need not be gone through, as for nearly every app
        return
    bases = {DEFAULT_BASE_DOMAIN, *(node.node.base_domain for node in tx.nodes(spec.environment))}
    violations = [
        Violation(f"app.domains[{index}]", f"must not be below {base!r}, where each app has its own address")
        for index, domain in enumerate(spec.domains)
        for base in sorted(bases)
        if base and (domain == base or domain.endswith("." + base))
    ]
    if violations:
        raise invalid_fields(violations)


def _check_database_server(tx: Transaction, spec: pb.App, *, made: bool = False) -> None:
    """Refuse a database server that does not exist, is full, or lacks what is needed; `made`: elsewhere."""
    name = spec.database.postgres.server
    record = check_server(tx, name)
    if record is None:
        return
    _check_extensions(spec, record)
    if not made:
        _check_template(spec, record)
    apps = tx.count_apps_on_server(name)
    if apps >= record.server.max_apps:
        raise SupervisorError(
            "DATABASE_SERVER_FULL",
            f"{name} has the databases of {counted(apps, 'app')}, as many as its max_apps lets it have.",
            resource=name,
            metadata={"apps": str(apps), "max_apps": str(record.server.max_apps)},
        )


def _check_extensions(spec: pb.App, server: DatabaseServerRecord) -> None:
    """Refuse extensions that a database server does not allow."""
    allowed = server.server.allowed_extensions
    violations = [
        Violation(
            f"app.database.postgres.extensions[{index}]",
            f"is none that {server.name} allows: {', '.join(allowed) or 'there is none'}",
        )
        for index, name in enumerate(spec.database.postgres.extensions)
        if name not in allowed
    ]
    if violations:
        raise invalid_fields(violations)


def _check_template(spec: pb.App, server: DatabaseServerRecord) -> None:
    """Refuse a template that a database server does not have."""
    template, known = spec.database.postgres.template, server.server.templates
    if template and template not in known:
        rule = f"is none that {server.name} has: {', '.join(known) or 'there is none'}"
        raise invalid_field("app.database.postgres.template", rule)


def check_server(tx: Transaction, name: str) -> DatabaseServerRecord | None:
    """Return a database server; None if none is named. Raises DATABASE_SERVER_NOT_FOUND."""
    record = tx.database_server(name) if name else None
    if name and record is None:
        raise SupervisorError(
            "DATABASE_SERVER_NOT_FOUND",
            f"{name} does not exist; create it first.",
            code=Code.FAILED_PRECONDITION,
            resource=name,
        )
    return record


def update(
    tx: Transaction, record: AppRecord, request: pb.UpdateAppRequest, caller: Caller
) -> OperationRecord:
    """Change what an update names, if that changes anything."""
    spec = normalize_app(apply_update(record.spec, request.app, request.update_mask))
    spec.name = record.name
    violations = app_violations(spec)
    if spec.environment != record.spec.environment:
        violations.append(Violation("app.environment", "cannot be changed"))
    if spec.database.WhichOneof("kind") != record.spec.database.WhichOneof("kind"):
        violations.append(Violation("app.database", "its kind cannot be changed"))
    elif spec.database.postgres.mode != record.spec.database.postgres.mode:
        violations.append(Violation("app.database.postgres.mode", "cannot be changed"))
    elif spec.database.postgres.template != record.spec.database.postgres.template:
        violations.append(Violation("app.database.postgres.template", "cannot be changed"))
    if violations:
        raise invalid_fields(violations)
    target = spec.database.postgres.server
    if target != record.database_server:
        # It is the app's once its database is there; what else the update changes is stored now.
        provided = get_condition(record.status.conditions, DATABASE_PROVIDED)
        made = provided is not None and provided.status == Condition.MET
        _check_database_server(tx, spec, made=made)
        spec.database.postgres.server = record.database_server
        return _move_database(tx, record, spec, target, caller)
    if spec == record.spec:
        return operations.begin(tx, "update", record, caller.actor)
    server = tx.database_server(target)
    if server is not None and spec.database != record.spec.database:
        _check_extensions(spec, server)
    changed, effect, told = _with_spec(tx, record, spec)
    return put(tx, record, changed, "update", caller, "Updated", effect=effect, message=told)


def _move_database(
    tx: Transaction, record: AppRecord, spec: pb.App, target: str, caller: Caller
) -> OperationRecord:
    """Have an app's database go to another server, and its spec be as it is to be besides."""
    changed = database_moves.begun(record, target)
    told, effect = "", ""
    if spec != record.spec:
        changed, effect, told = _with_spec(tx, changed, spec)
    message = sentences(f"From {record.database_server} to {target}", told)
    event = "DatabaseMoveRequested"
    return put(tx, record, changed, MOVE_DATABASE, caller, event, effect=effect, message=message)


def _with_spec(tx: Transaction, record: AppRecord, spec: pb.App) -> tuple[AppRecord, str, str]:
    """Return an app with another spec, the verb that this amounts to if it is another, and what changed."""
    if spec.domains != record.spec.domains:
        _check_domains(tx, spec)
    changed = replace(record, spec=spec)
    if runtime_fields_changed(record.spec, spec):
        changed = replace(changed, target=Version(record.generation + 1, record.target.epoch), failed=None)
    effect = ""
    if record.spec.desired_state != spec.desired_state:
        effect = "stop" if spec.desired_state == pb.App.STOPPED else "start"
    if effect == "start":
        changed = restarted(changed)
    return changed, effect, differences(record.spec, spec)


def with_notice(
    tx: Transaction, before: AppRecord, operation: OperationRecord, code: CodeChange | None
) -> OperationRecord:
    """Return an update's operation, which says so if it left other code on disk unloaded."""
    record = tx.app(before.name)
    if code is None or record is None or not (code.is_of(before) and code.is_of(record)):
        return operation
    return operations.with_notice(tx, operation, code.condition)


def started(record: AppRecord) -> AppRecord:
    """A start of what runs changes nothing; of what failed or is stopped, it is a new epoch."""
    running = record.spec.desired_state != pb.App.STOPPED
    if running and record.status.state not in (Instance.FAILED, Instance.STOPPED):
        return record
    return restarted(replace(record, spec=_with_desired(record.spec, pb.App.RUNNING)))


def stopped(record: AppRecord) -> AppRecord:
    """Return an app that is to be stopped."""
    return replace(record, spec=_with_desired(record.spec, pb.App.STOPPED))


def restarted(record: AppRecord) -> AppRecord:
    """Return an app that is to be started anew. Raises APP_STOPPED."""
    if record.spec.desired_state == pb.App.STOPPED:
        raise SupervisorError(
            "APP_STOPPED", f"{record.name} is stopped; start it instead.", resource=record.name
        )
    target = Version(record.target.generation, newest_epoch(record) + 1)
    return replace(record, target=target, failed=None)


def without_data(tx: Transaction, record: AppRecord, changed: AppRecord) -> AppRecord:
    """Let an app begin with no data, also on another node if its own cannot be heard."""
    given_up = False
    status = pb.App()
    status.CopyFrom(changed.status)
    if get_condition(status.conditions, DATABASE_PROVIDED) is not None:
        set_condition(status.conditions, DATABASE_PROVIDED, Condition.UNMET, "GivenUp", "", tx.now)
        changed = replace(changed, status=status)
    for placement in tx.placements_of(record.name):
        silent = _may_be_left(tx.node(placement.node), record.spec)
        if silent and placement.role is not Role.LOST:
            given_up = True
            why = "Its data was given up while its node could not be heard."
            tx.put_placement(replace(placement, role=Role.LOST, why=why, has_data=False, since=tx.now))
        elif placement.has_data:
            tx.put_placement(replace(placement, has_data=False))
    if given_up and record.status.retained_data:
        why = f"{record.name} gave it up while its node could not be heard."
        changed = retention.given_back(tx, changed, RetainedData.RETAINED, why)
    return restarted(changed) if given_up and changed.target == record.target else changed


def _may_be_left(node: NodeRecord | None, spec: pb.App) -> bool:
    """Tell whether an app may begin elsewhere: a CONSISTENT one not while its node may answer for it."""
    if node is None:
        return True
    waits = effective_availability(spec) == InstanceSpec.CONSISTENT
    return node.node.state == Node.UNREACHABLE and not (waits and node.node.lease_state == Node.GRANTED)


def _with_desired(spec: pb.App, desired: pb.App.DesiredState.ValueType) -> pb.App:
    if spec.desired_state == desired:
        return spec
    changed = pb.App()
    changed.CopyFrom(spec)
    changed.desired_state = desired
    return changed


def put(
    tx: Transaction,
    record: AppRecord,
    changed: AppRecord,
    verb: str,
    caller: Caller,
    event: str,
    *,
    effect: str = "",
    message: str = "",
) -> OperationRecord:
    """Store a changed app under the next generation if its spec changed, and begin an operation."""
    if changed.spec is not record.spec:
        changed = replace(changed, generation=record.generation + 1, update_time=tx.now)
    if changed is not record:
        status = pb.App()
        status.CopyFrom(changed.status)
        if _is_settled(tx, record, changed):
            status.observed_generation = changed.generation
        else:
            status.reconciling = True
            starts = changed.spec.desired_state != pb.App.STOPPED and changed.target != record.target
            if starts and status.state in (Instance.STOPPED, Instance.FAILED):
                status.state = Instance.PENDING
                set_condition(status.conditions, "Ready", Condition.UNMET, "Starting", "", tx.now)
        changed = replace(changed, status=status)
        changed = tx.put_app(changed)
    operation = operations.begin(tx, verb, changed, caller.actor, effect=effect)
    add_event(tx, changed, event, actor=caller.actor, message=message, operation=operation.name)
    return operation


def take_back(tx: Transaction, record: AppRecord, actor: str, operation: str) -> None:
    """Stop an app because the operation that was to bring it up is cancelled."""
    operations.supersede(tx, record.name, "cancel", "stop")
    changed = stopped(record)
    if changed is record:
        return
    status = pb.App()
    status.CopyFrom(record.status)
    status.reconciling = status.state != Instance.STOPPED
    changed = replace(changed, status=status, generation=record.generation + 1, update_time=tx.now)
    changed = tx.put_app(changed)
    add_event(tx, changed, "StopRequested", actor=actor, reason="OPERATION_CANCELLED", operation=operation)


def only_shown(tx: Transaction, operation: OperationRecord) -> OperationRecord:
    """Return the operation of a request that is only validated: done, with its subject as it would be."""
    if operation.done:
        return operation
    data = tx.retained(operation.app)
    return operations.end(
        tx, operation, None, app=tx.app(operation.app), response=data.public if data is not None else None
    )


def _is_settled(tx: Transaction, record: AppRecord, changed: AppRecord) -> bool:
    """Tell whether a change needs nothing done: what runs stays, or nothing runs and nothing shall."""
    if changed.spec.desired_state == pb.App.STOPPED:
        return bool(changed.status.state == Instance.STOPPED)
    placements = tx.placements_of(record.name)
    if is_several(changed):
        # One more or less is left to be seen by who looks at the nodes.
        served = wanted_replicas(changed) == wanted_replicas(record) and not record.status.reconciling
        served = served and all(is_at(it, changed.target) for it in placements)
    else:
        served = served_version(changed, placements) == changed.target
    same = record.spec.desired_state != pb.App.STOPPED and served
    return same and changed.status.state in READY


def delete(
    tx: Transaction, record: AppRecord, request: pb.DeleteAppRequest, caller: Caller
) -> OperationRecord:
    """Have an app removed, with or without its data."""
    policy = request.data_policy or record.deleting or pb.DeleteAppRequest.RETAIN
    if record.deleting == pb.DeleteAppRequest.DROP and policy != pb.DeleteAppRequest.DROP:
        sentence = (
            f"{record.name} is being deleted with its data; what is dropped cannot be retained any more."
        )
        raise SupervisorError("APP_DELETING", sentence, resource=record.name)
    operation = next(iter(tx.open_operations(record.name, ("delete",))), None)
    if operation is not None and policy == record.deleting:
        return operation
    status = pb.App()
    status.CopyFrom(record.status)
    status.state, status.reconciling = Instance.DELETING, True
    changed = replace(record, deleting=policy, status=status)
    changed = tx.put_app(changed)
    operation = operation or operations.begin(tx, "delete", changed, caller.actor)
    reason = pb.DeleteAppRequest.DataPolicy.Name(policy)
    add_event(tx, changed, "DeleteRequested", reason=reason, actor=caller.actor, operation=operation.name)
    return operation


def remove(
    tx: Transaction, record: AppRecord, actor: str, policy: pb.DeleteAppRequest.DataPolicy.ValueType
) -> None:
    """Remove an app from the catalog, when nothing is left of it that could be heard."""
    operations.supersede(tx, record.name, "delete", "delete")
    tx.delete_app(record.name)
    operations.settle_removed(tx, record)
    reason = pb.DeleteAppRequest.DataPolicy.Name(policy)
    add_event(tx, record, "Deleted", actor=actor, reason=reason)


def nothing_to_do(tx: Transaction, name: str, caller: Caller) -> OperationRecord:
    """Return the operation of a delete of what is not there."""
    absent = AppRecord(name, "", pb.App(name=name), pb.App(), 0, Version(0, 0), tx.now, tx.now)
    operation = operations.begin(tx, "delete", absent, caller.actor)
    return operations.end(tx, operation, None, app=absent)


def existing(record: AppRecord | None, name: str, etag: str) -> AppRecord:
    """Return a record that is there and has the etag, if one is given."""
    if record is None:
        raise app_not_found(name)
    check_etag(etag, record.public.etag, name)
    return record


def changeable(record: AppRecord | None, name: str, etag: str) -> AppRecord:
    """Return a record that is there, has the etag, if one is given, and is not being deleted."""
    record = existing(record, name, etag)
    if record.deleting:
        raise SupervisorError("APP_DELETING", f"{name} is being deleted.", resource=name)
    return record


def app_not_found(name: str) -> SupervisorError:
    """Return the error for an app that isn't in the catalog."""
    return SupervisorError("APP_NOT_FOUND", f"{name} does not exist.", resource=name)


def add_event(
    tx: Transaction,
    record: AppRecord,
    kind: str,
    *,
    actor: str,
    reason: str = "",
    message: str = "",
    detail: str = "",
    instance: str = "",
    operation: str = "",
) -> None:
    """Append to an app's timeline."""
    event = pb.AppEvent(
        type=kind,
        reason=reason,
        message=message,
        detail=detail,
        actor=actor,
        generation=record.generation,
        instance=instance,
        operation=operation,
        app_uid=record.uid,
    )
    tx.add_event(record.name, event)
