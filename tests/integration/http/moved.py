"""An app that has moved: the listener that it has left, which forwards, and the one that has it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from runtime_node.forwarding import Carrier, Forwarder, ForwardGate


@dataclass
class Moved:
    """The node that an app has left, and the one that has it."""

    former: Any
    home: Any
    carrier: Carrier
    forwarder: Forwarder
    gate: ForwardGate
    open: Any = None

    async def get(self, path: str = "/", *headers: str, host: str = "a.localhost") -> Any:
        return await self.former.get(path, *headers, host=host)
