"""Which instance the running code belongs to, wherever it runs: tasks, threads, callbacks."""

from __future__ import annotations

from contextvars import ContextVar

CURRENT_INSTANCE: ContextVar[str] = ContextVar("current_instance", default="")
"""Resource name of the instance (`AppContext.instance`); empty for the node's own code."""
