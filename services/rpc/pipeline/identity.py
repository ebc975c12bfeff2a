"""Says who makes a call. So far everyone is anonymous: known by an address, and by their own word."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from services.rpc.pipeline.call import Call

ACTOR_KEY = "x-actor"
MAX_WORD = 128


def anonymous(call: Call) -> None:
    """Take a call from whoever makes it: its `actor` is what `anonymous_actor` says, once asked for."""


Identify = Callable[["Call"], None]
"""Sets a call's `actor`, or raises SupervisorError for one that is not known."""


def anonymous_actor(metadata: Mapping[str, str | bytes], peer: str) -> str:
    """Return the caller's own word in `x-actor` and its address."""
    told = metadata.get(ACTOR_KEY)
    word = "".join(letter for letter in str(told)[:MAX_WORD] if letter.isprintable()) if told else ""
    return f"{word} ({peer})" if word else peer
