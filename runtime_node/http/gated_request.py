"""What a gate lets in: a request or a WebSocket, seen without its bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from runtime_node.asgi import ASGIApp
from runtime_node.http.problems import Problem

if TYPE_CHECKING:
    from runtime_node.http.gate import Gate


class ClientGoneError(OSError):
    """Raised in an app that sends to a client that is gone, as the ASGI specification has it."""


class GatedRequest(Protocol):
    """A request or a WebSocket on its way through a gate. All of it belongs to the front loop."""

    is_websocket: bool
    admitted_at: float
    stretch: int
    """Of the gate's lease, in which it was begun."""
    task: asyncio.Task[None] | None

    def run(self, asgi: ASGIApp) -> Coroutine[Any, Any, None]:
        """Serve it with the app; calls the gate's `response_done` and `task_done`. Never raises a fault."""
        ...

    def moved(self, gate: Gate) -> None:
        """Take note that another gate has it from now on."""
        ...

    def refuse(self, problem: Problem) -> None:
        """Answer a request that was never admitted."""
        ...

    def cut(self, problem: Problem) -> None:
        """End one that is being served: answer if nothing was sent yet, else close; cancel its task."""
        ...

    def close_gently(self) -> None:
        """Tell the client of a WebSocket to come again (1012)."""
        ...
