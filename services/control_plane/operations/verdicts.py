"""Whether an operation on an app has reached its goal, or cannot any more, by what is seen of it. Pure."""

from __future__ import annotations

from appsupervisor.catalog.v1.app_catalog_pb2 import App, OperationMetadata
from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance
from services.control_plane.placement.scale import is_several, wanted_replicas
from services.control_plane.rules.sentences import sentences
from services.control_plane.store.records import AppRecord, OperationRecord, Version
from services.rpc.errors import CODES, SupervisorError

READY = frozenset({Instance.RUNNING, Instance.IDLE})

BRINGS_UP = frozenset({"create", "update", "start", "restart", "recover", "attach"})
"""Verbs of operations that wait for their app to serve."""


def is_only_told(operation: OperationRecord, record: AppRecord) -> bool:
    """Tell whether an update is carried out once it is stored: a paused rollout replaces nothing."""
    if operation.verb != "update" or not isinstance(operation.metadata, OperationMetadata):
        return False
    newest = operation.metadata.generation == record.generation
    return newest and record.spec.rollout.paused and record.status.state in READY


def fulfilled(verb: str, goal: Version, record: AppRecord, served: Version | None) -> bool:
    """Tell whether an operation has reached its goal; `served` is the version that serves, or did last."""
    if verb == "delete":
        return False  # ended by the removal itself
    if verb == "attach" and record.status.retained_data:
        return False  # its node has not handed the data over yet
    if verb == "stop" or record.spec.desired_state == App.STOPPED:
        wanted = record.spec.desired_state == App.STOPPED
        return wanted and bool(record.status.state == Instance.STOPPED)
    if is_several(record) and record.status.ready_replicas < wanted_replicas(record):
        return False
    return served is not None and record.status.state in READY and _reaches(served, goal)


def failed(verb: str, goal: Version, record: AppRecord) -> SupervisorError | None:
    """Return why an operation can't reach its goal by itself, or None."""
    if verb not in BRINGS_UP or record.spec.desired_state == App.STOPPED:
        return None
    if record.failed is not None and _reaches(record.failed, goal):
        return error_of(record, "Updated")
    if record.status.state in (Instance.FAILED, Instance.STOPPED) and _reaches(record.target, goal):
        return error_of(record, "Ready")
    broken = (
        next(iter(_failed(record)), None) if is_several(record) and not record.status.reconciling else None
    )
    if broken is not None:
        # Others serve: the app is well enough, but it is not what was asked for.
        reason = _known(broken.last_error.reason)
        text = sentences(f"{broken.name} failed", broken.last_error.message)
        return SupervisorError(reason, text, resource=record.name, metadata=_metadata(record, reason))
    return None


def failure_there(operation: OperationRecord, record: AppRecord) -> SupervisorError | None:
    """Return why a move of one of several replicas failed, by what its instance tells."""
    if not is_several(record):
        return None
    for broken in _failed(record):
        if broken.node == operation.metadata.node and broken.epoch >= operation.goal.epoch:  # type: ignore[union-attr]
            reason = _known(broken.last_error.reason)
            text = sentences(broken.last_error.message or "It did not start", "It goes on where it serves")
            return SupervisorError(reason, text, resource=record.name, metadata=_metadata(record, reason))
    return None


def error_of(record: AppRecord, kind: str) -> SupervisorError:
    """Return the error that an app's condition of a type tells."""
    for condition in record.status.conditions:
        if condition.type == kind:
            reason = _known(condition.reason)
            return SupervisorError(
                reason, condition.message, resource=record.name, metadata=_metadata(record, condition.reason)
            )
    return SupervisorError("APP_STARTUP_FAILED", f"{record.name} failed.", resource=record.name)


def _known(reason: str) -> str:
    # A node may tell a reason that this program doesn't know, or a word that is no error's.
    return reason if reason in CODES else "APP_STARTUP_FAILED"


def _metadata(record: AppRecord, reason: str) -> dict[str, str]:
    """Return what an app's failed instance tells programs with an error of a reason."""
    return next(
        (dict(it.last_error.metadata) for it in _failed(record) if it.last_error.reason == reason), {}
    )


def traceback_of(record: AppRecord) -> str:
    """Return the traceback that an app's failed instance has, the one that was given up first."""
    return next((it.last_error.detail for it in _failed(record)), "")


def _failed(record: AppRecord) -> list[Instance]:
    """Return an app's failed instances, the one that was given up first ahead."""
    failed = [it for it in record.status.instances if it.state == Instance.FAILED]
    failed.sort(key=lambda it: (it.epoch, it.generation), reverse=True)
    return failed


def _reaches(version: Version, goal: Version) -> bool:
    return version.generation >= goal.generation and version.epoch >= goal.epoch
