"""Conditions of a status: set, found and removed by type."""

from __future__ import annotations

from datetime import datetime

from appsupervisor.runtime.v1.runtime_environment_pb2 import Condition
from google.protobuf.internal.containers import RepeatedCompositeFieldContainer
from google.protobuf.timestamp_pb2 import Timestamp


def set_condition(  # noqa: PLR0917 - the fields of a condition, in their order
    conditions: RepeatedCompositeFieldContainer[Condition],
    type: str,
    status: Condition.Status.ValueType,
    reason: str,
    message: str,
    now: datetime | Timestamp,
) -> bool:
    """Set the condition of that type in place and tell whether anything changed.

    `last_transition_time` becomes `now` only if the condition is new or its status changed. A naive
    `now` is taken as UTC.
    """
    condition = get_condition(conditions, type)
    if condition is None:
        condition = conditions.add(type=type, status=status, reason=reason, message=message)
        _stamp(condition, now)
        return True
    if (condition.status, condition.reason, condition.message) == (status, reason, message):
        return False
    if condition.status != status:
        condition.status = status
        _stamp(condition, now)
    condition.reason = reason
    condition.message = message
    return True


def get_condition(conditions: RepeatedCompositeFieldContainer[Condition], type: str) -> Condition | None:
    """Return the condition of that type, or None."""
    return next((condition for condition in conditions if condition.type == type), None)


def remove_condition(conditions: RepeatedCompositeFieldContainer[Condition], type: str) -> bool:
    """Remove the condition of that type and tell whether there was one."""
    condition = get_condition(conditions, type)
    if condition is None:
        return False
    conditions.remove(condition)
    return True


def _stamp(condition: Condition, now: datetime | Timestamp) -> None:
    if isinstance(now, datetime):
        condition.last_transition_time.FromDatetime(now)
    else:
        condition.last_transition_time.CopyFrom(now)
