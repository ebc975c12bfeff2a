"""What a servicer reads from a call: who makes it, and how long it may take."""

from __future__ import annotations

from typing import Any

from services.control_plane.catalog.idempotency import Caller

LONGEST_CALL = 30.0
"""Seconds a unary call may take when its caller set no deadline."""

ACTOR_KEY = "x-actor"


def caller_of(context: Any, longest: float = LONGEST_CALL) -> Caller:
    """Return who makes a call: its own word in `x-actor` (at most 128 characters) and its address."""
    metadata = dict(context.invocation_metadata() or ())
    word = str(metadata.get(ACTOR_KEY, ""))[:128]
    word = "".join(letter for letter in word if letter.isprintable())
    peer = str(context.peer() or "unknown")
    remaining = context.time_remaining()
    timeout = longest if remaining is None else max(0.0, min(remaining, longest))
    return Caller(actor=f"{word} ({peer})" if word else peer, timeout=timeout)
