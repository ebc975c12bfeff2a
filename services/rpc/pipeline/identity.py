"""Says who makes a call. So far everyone is anonymous: known by an address, and by their own word."""

from __future__ import annotations

from collections.abc import Callable

from services.rpc.pipeline.call import Call

Identify = Callable[[Call], None]
"""Sets `peer` and `actor`, or raises SupervisorError."""

ACTOR_KEY = "x-actor"
MAX_WORD = 128


def anonymous(call: Call) -> None:
    """Set `peer` to the caller's address and `actor` to its own word in `x-actor`, and the address."""
    peer = call.transport.peer() or "unknown"
    call.peer = call.actor = peer
    if call.metadata and (told := call.metadata.get(ACTOR_KEY)):
        word = "".join(letter for letter in str(told)[:MAX_WORD] if letter.isprintable())
        call.actor = f"{word} ({peer})" if word else peer
