"""A hold: where an app's requests wait while none of its instances may serve them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from runtime_node.http.gate import Gate
from runtime_node.http.limits import GateLimits
from runtime_node.instances.record import Instance

OLD_SECONDS = 300.0


class Hold:
    """One hold, from when it is made. Belongs to the control loop."""

    def __init__(
        self,
        name: str,
        limits: GateLimits,
        domains: Sequence[str],
        leaving: Sequence[Instance],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`leaving` are the instances that do not end it; `name` is what its gate is called in the log."""
        self.gate = Gate(name, limits)
        self.gate.hold(_wait)
        self.domains = list(domains)
        self.leaving = frozenset(leaving)
        self._clock = clock
        self._began = clock()
        self._ended: float | None = None
        self.waited = 0
        """Requests that waited when it was over."""

    @property
    def seconds(self) -> float:
        """How long it has lasted."""
        return (self._clock() if self._ended is None else self._ended) - self._began

    @property
    def is_old(self) -> bool:
        """Whether nobody will ask of it any more: it began minutes ago."""
        return self._clock() - self._began > OLD_SECONDS

    def end(self) -> None:
        """Note that it is over."""
        if self._ended is None:
            self._ended = self._clock()
            self.waited = self.gate.figures().queued


def _wait() -> None:
    """Do nothing about a first request that waits: somebody is at it."""
