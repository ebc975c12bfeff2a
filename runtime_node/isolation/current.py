"""Which instance the running code belongs to, wherever it runs: tasks, threads, callbacks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

CURRENT_INSTANCE: ContextVar[str] = ContextVar("appsupervisor_current_instance", default="")
"""Resource name of the instance (`AppContext.instance`); empty for the node's own code."""


@contextmanager
def running_as(instance: str) -> Iterator[None]:
    """Let what this block does count as the instance's."""
    token = CURRENT_INSTANCE.set(instance)
    try:
        yield
    finally:
        CURRENT_INSTANCE.reset(token)
