"""Which instance a request serves, and the exception that interrupts it; both are made elsewhere."""

from __future__ import annotations

from runtime_node.isolation.current import CURRENT_INSTANCE
from runtime_node.watchdog.interruption import RequestInterrupted, interruption_point, is_interruption

__all__ = ["CURRENT_INSTANCE", "RequestInterrupted", "interruption_point", "is_interruption"]
