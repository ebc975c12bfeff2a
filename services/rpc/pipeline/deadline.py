"""Notes until when a call is to be answered. gRPC itself cancels a call whose time is up."""

from __future__ import annotations

from services.rpc.errors import time_is_up
from services.rpc.pipeline.call import Call


def note_deadline(call: Call) -> None:
    """Set `deadline`. Raises OPERATION_DEADLINE_EXCEEDED if it has passed before anything was done."""
    left = call.transport.time_remaining()
    if left is None:
        return
    if left <= 0:
        raise time_is_up("it was begun")
    call.deadline = call.began + left
