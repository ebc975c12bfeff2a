"""Conditions of a status: set and found by type."""

from __future__ import annotations

from google.protobuf.internal.containers import RepeatedCompositeFieldContainer

from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition

DATABASE_PROVIDED = "DatabaseProvided"
"""The app's own database was made once: from then on it must be there."""

DATABASE_READY = "DatabaseReady"
"""What was last to be done about the app's own database was done."""

CODE_CHANGED = "CodeChanged"
"""The disk has other code than runs. Told by nodes that are asked; the catalog never keeps it."""


def set_condition(
    conditions: RepeatedCompositeFieldContainer[Condition],
    type: str,
    status: Condition.Status.ValueType,
    reason: str,
    message: str,
    now: int,
) -> bool:
    """Set the condition of that type in place and tell whether anything changed.

    `last_transition_time` becomes `now`, microseconds since the Unix epoch, only if the condition is new
    or its status changed.
    """
    condition = get_condition(conditions, type)
    if condition is None:
        condition = conditions.add(type=type, status=status, reason=reason, message=message)
        condition.last_transition_time.FromMicroseconds(now)
        return True
    if (condition.status, condition.reason, condition.message) == (status, reason, message):
        return False
    if condition.status != status:
        condition.status = status
        condition.last_transition_time.FromMicroseconds(now)
    condition.reason = reason
    condition.message = message
    return True


def get_condition(conditions: RepeatedCompositeFieldContainer[Condition], type: str) -> Condition | None:
    """Return the condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == type), None)
