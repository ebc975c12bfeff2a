"""The states of an instance and the events that lead from one to another. Pure.

(accepted, EAGER) ─► PENDING ─begin► STARTING ─ready► RUNNING ─sleep► IDLE ◄─ (accepted, ON_REQUEST)
                        ▲               │ fail           │ crash        │ wake
                        ├──retry─── FAILED ◄─────────────┤              └────► PENDING
                        └──restart─ STOPPED ◄──finish────┘
every state ─stop► STOPPING ─► gone
"""

from __future__ import annotations

from enum import Enum, auto
from typing import TypeAlias

from appsupervisor.runtime.v1.runtime_environment_pb2 import Instance

StateValue: TypeAlias = Instance.State.ValueType


class Event(Enum):
    """What can happen to an instance."""

    BEGIN = auto()
    """Its turn has come: its code is loaded."""
    READY = auto()
    """Its startup is complete."""
    FAIL = auto()
    """Its start failed."""
    CRASH = auto()
    """It ended by itself, and that counts as a failure."""
    FINISH = auto()
    """It ended by itself without an error and its policy asks for no restart."""
    SLEEP = auto()
    """It went dormant."""
    WAKE = auto()
    """A request wants it."""
    RETRY = auto()
    """Its restart policy starts it again."""
    RESTART = auto()
    """RestartInstance starts it again."""
    STOP = auto()
    """StopInstance, or the node's shutdown, ends it."""


class IllegalTransition(Exception):  # noqa: N818 - a fault of ours, named for what it is
    """An event came in a state that does not know it: a fault of the node."""


_STARTABLE = (
    Instance.PENDING,
    Instance.STARTING,
    Instance.RUNNING,
    Instance.IDLE,
    Instance.FAILED,
    Instance.STOPPED,
)

TRANSITIONS: dict[tuple[StateValue, Event], StateValue] = {
    (Instance.PENDING, Event.BEGIN): Instance.STARTING,
    (Instance.PENDING, Event.FAIL): Instance.FAILED,
    (Instance.STARTING, Event.READY): Instance.RUNNING,
    (Instance.STARTING, Event.FAIL): Instance.FAILED,
    (Instance.RUNNING, Event.CRASH): Instance.FAILED,
    (Instance.RUNNING, Event.FINISH): Instance.STOPPED,
    (Instance.RUNNING, Event.SLEEP): Instance.IDLE,
    (Instance.IDLE, Event.WAKE): Instance.PENDING,
    (Instance.FAILED, Event.RETRY): Instance.PENDING,
    **{(state, Event.RESTART): Instance.PENDING for state in _STARTABLE},
    **{(state, Event.STOP): Instance.STOPPING for state in _STARTABLE},
}
"""Where each event leads; a pair that is missing is illegal."""


def initial(on_request: bool) -> StateValue:
    """Return the state in which an accepted instance begins."""
    return Instance.IDLE if on_request else Instance.PENDING


def advance(state: StateValue, event: Event) -> StateValue:
    """Return the state that `event` leads to. Raises IllegalTransition."""
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"{event.name} in {Instance.State.Name(state)}") from None
