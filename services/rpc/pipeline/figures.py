"""Counts the calls of each method: how they ended, how long they took, which are under way."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterable

from google.rpc.code_pb2 import Code
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)

PREFIX = "appsupervisor_rpc"

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of the histogram of unary calls, seconds."""


class MethodFigures:
    """The figures of one method. Written on the server's loop, read from any thread."""

    __slots__ = ("buckets", "codes", "open", "seconds")

    def __init__(self) -> None:
        self.open = 0
        """Calls under way."""
        self.codes: dict[int, int] = {}
        self.seconds = 0.0
        self.buckets = [0] * (len(BUCKETS) + 1)

    def end(self, code: int, seconds: float | None) -> None:
        """Count a call out, with its code; of a stream no time is kept, for its length says nothing."""
        self.open -= 1
        self.codes[code] = self.codes.get(code, 0) + 1
        if seconds is not None:
            self.seconds += seconds
            self.buckets[bisect_left(BUCKETS, seconds)] += 1


class CallFigures:
    """The figures of one server, by method."""

    def __init__(self) -> None:
        self._methods: dict[str, MethodFigures] = {}
        self._growing = threading.Lock()

    def of(self, method: str) -> MethodFigures:
        """Return the figures of a method that the server has: names that callers make up would pile up."""
        with self._growing:
            return self._methods.setdefault(method, MethodFigures())

    def collect(self) -> Iterable[Metric]:
        """Return the figures as metrics."""
        with self._growing:
            methods = sorted(self._methods.items())
        calls = CounterMetricFamily(f"{PREFIX}_calls", "Calls that ended.", labels=["method", "code"])
        under_way = GaugeMetricFamily(
            f"{PREFIX}_open_calls", "Calls and streams under way.", labels=["method"]
        )
        times = HistogramMetricFamily(f"{PREFIX}_seconds", "What unary calls took.", labels=["method"])
        for name, figures in methods:
            method = name.removeprefix("/")
            under_way.add_metric([method], figures.open)
            for code, count in sorted(figures.codes.copy().items()):
                calls.add_metric([method, Code.Name(code)], count)
            if any(figures.buckets):
                total, sums = 0, []
                for bound, count in zip((*map(str, BUCKETS), "+Inf"), figures.buckets, strict=True):
                    total += count
                    sums.append((bound, total))
                times.add_metric([method], buckets=sums, sum_value=figures.seconds)
        return calls, under_way, times
