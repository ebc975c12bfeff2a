"""What a pass changed of an app, appended to the app's timeline.

Of states, health, trials and what instances tell of; what a command did is told by the command.
"""

from __future__ import annotations

from appsupervisor.catalog.v1.app_catalog_pb2 import App
from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition, Instance
from services.control_plane.catalog.changes import add_event
from services.control_plane.catalog.idempotency import SYSTEM
from services.control_plane.operations import canaries
from services.control_plane.placement.assignment import Assignment
from services.control_plane.placement.scale import is_several
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.interface import Transaction
from services.control_plane.store.records import AppRecord, Role


def tell(tx: Transaction, before: AppRecord, after: AppRecord, assigned: Assignment) -> None:
    """Append what changed to the app's timeline."""
    old, new = before.status, after.status
    ready = _condition(new, "Ready")
    if old.state != new.state:
        culprit = next((i for i in new.instances if i.state == Instance.FAILED), None)
        failed = new.state == Instance.FAILED and culprit is not None
        add_event(
            tx,
            after,
            "StateChanged",
            actor=SYSTEM,
            reason=ready.reason,
            message=sentences(
                f"{Instance.State.Name(old.state)} to {Instance.State.Name(new.state)}", ready.message
            ),
            detail=culprit.last_error.detail if failed and culprit else "",
            instance=culprit.name if failed and culprit else "",
        )
    elif old.health != new.health:
        failing = _failing_probe(new)
        add_event(
            tx,
            after,
            "HealthChanged",
            actor=SYSTEM,
            reason=ready.reason if failing is None else failing.reason,
            message=sentences(
                f"{Instance.Health.Name(old.health)} to {Instance.Health.Name(new.health)}",
                ready.message,
                "" if failing is None else failing.message,
            ),
        )
    canaries.tell(tx, after, old.canary, new.canary)
    _tell_blocks(tx, after, old, new)
    updated = _condition(new, "Updated")
    if updated.status == Condition.UNMET and _condition(old, "Updated") != updated:
        culprit = next((i for i in new.instances if i.state == Instance.FAILED), None)
        add_event(
            tx,
            after,
            _failed_command(assigned, after),
            actor=SYSTEM,
            reason=updated.reason,
            message=updated.message,
            detail=culprit.last_error.detail if culprit else "",
            instance=culprit.name if culprit else "",
        )


def _failing_probe(status: App) -> Condition | None:
    """Return what an instance says of its health check, if it fails."""
    told = (it for instance in status.instances for it in instance.conditions)
    return next((it for it in told if it.type == "ProbeFailing" and it.status == Condition.MET), None)


def _failed_command(assigned: Assignment, record: AppRecord) -> str:
    """Return the type of the event that tells that a version was given up."""
    current, given_up = assigned.current, record.failed
    epochs = {it.epoch: it.node for it in assigned.placements}
    if is_several(record) and given_up is not None:
        served = {it.generation for it in assigned.placements if it.role is Role.CURRENT}
        return "UpdateFailed" if served - {given_up.generation} else "RestartFailed"
    if current is None or given_up is None:
        return "UpdateFailed"
    if epochs.get(given_up.epoch, current.node) != current.node:
        return "MoveFailed"
    return "RestartFailed" if current.generation == given_up.generation else "UpdateFailed"


def _tell_blocks(tx: Transaction, record: AppRecord, old: App, new: App) -> None:
    """Append what instances tell of as errors and conditions: blocked loops, what was put back for all."""
    known = {instance.name: instance for instance in old.instances}
    for instance in new.instances:
        before = known.get(instance.name, Instance())
        error = instance.last_error
        if error.reason == "APP_BLOCKED_LOOP" and error != before.last_error:
            add_event(
                tx,
                record,
                "LoopBlocked",
                actor=SYSTEM,
                reason=error.reason,
                message=error.message,
                detail=error.detail,
                instance=instance.name,
            )
        for kind in ("Demoted", "SharedStateRestored"):
            told = _of_instance(instance, kind)
            if told.status == Condition.MET and told != _of_instance(before, kind):
                add_event(
                    tx,
                    record,
                    kind,
                    actor=SYSTEM,
                    reason=told.reason,
                    message=told.message,
                    instance=instance.name,
                )


def _of_instance(instance: Instance, kind: str) -> Condition:
    return next((c for c in instance.conditions if c.type == kind), Condition())


def _condition(status: App, kind: str) -> Condition:
    return next((c for c in status.conditions if c.type == kind), Condition())
