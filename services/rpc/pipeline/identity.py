"""Says who makes a call. So far everyone is anonymous: known by an address, and by their own word."""

from __future__ import annotations

from collections.abc import Callable

from services.rpc.pipeline.call import Call

Identify = Callable[[Call], None]
"""Sets a call's `actor`, or raises SupervisorError for one that is not known."""


def anonymous(call: Call) -> None:
    """Take a call from whoever makes it: its `actor` is what it says of itself, once asked for."""
