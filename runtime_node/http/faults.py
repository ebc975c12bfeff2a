"""What goes wrong at a gate, which is seldom: counted, and an app's faults told at a bounded rate."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from runtime_node.raised import traceback_of

_logger = logging.getLogger(__name__)

_PER_SECOND = 5.0
_STACK_LIMIT = 16 * 1024


class Mishaps:
    """Of one gate, made with the first of them."""

    __slots__ = ("disconnects", "faults", "shed", "teller", "timeouts", "too_large", "widened_cookie")

    def __init__(self) -> None:
        self.shed = self.timeouts = self.faults = self.disconnects = self.too_large = 0
        self.teller: FaultTeller | None = None
        self.widened_cookie = False


class FaultTeller:
    """Calls `on_fault(name, stack)` at most five times a second; to format more would cost others."""

    __slots__ = ("_budget", "_last", "_name", "_on_fault")

    def __init__(self, name: str, on_fault: Callable[[str, str], None]) -> None:
        self._name = name
        self._on_fault = on_fault
        self._budget = _PER_SECOND
        self._last = time.monotonic()

    def tell(self, error: BaseException | None, what: str) -> None:
        """Tell of one fault: the last 16 KiB of its traceback, or `what` where there is no exception."""
        now = time.monotonic()
        self._budget = min(_PER_SECOND, self._budget + (now - self._last) * _PER_SECOND)
        self._last = now
        if self._budget < 1.0:
            return
        self._budget -= 1.0
        stack = what if error is None else traceback_of(error)
        try:
            self._on_fault(self._name, stack[-_STACK_LIMIT:])
        except Exception:
            # The caller's fault must not reach the listener.
            _logger.exception("on_fault failed", extra={"action": "gate.on_fault", "gate": self._name})
