"""Figures of one gate: counters and a latency histogram per reporting period.

Written on the front loop only; read from any thread without a lock, by copies that one bytecode makes.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import frexp

PERIOD = 5.0
"""Seconds of one reporting period."""

# Buckets are a quarter of an eighth of an octave: at most 3.1 % between a value and its bucket's middle.
_STEPS = 16


def bucket_of(seconds: float) -> int:
    """Return the logarithmic bucket of a latency."""
    mantissa, exponent = frexp(seconds)
    return exponent * _STEPS + int((mantissa - 0.5) * 2 * _STEPS)


def bucket_middle(bucket: int) -> float:
    """Return the latency in the middle of a bucket, in seconds."""
    exponent, step = divmod(bucket, _STEPS)
    return float((0.5 + (step + 0.5) / (2 * _STEPS)) * 2.0**exponent)


def quantiles(histogram: dict[int, int], shares: tuple[float, ...]) -> tuple[float, ...]:
    """Return the latency, in seconds, below which each share of the requests lies; 0 without requests."""
    total = sum(histogram.values())
    if not total:
        return (0.0,) * len(shares)
    found: list[float] = []
    seen = 0
    ordered = iter(sorted(histogram.items()))
    bucket, count = next(ordered)
    for share in shares:
        while seen + count < share * total:
            seen += count
            bucket, count = next(ordered)
        found.append(bucket_middle(bucket))
    return tuple(found)


@dataclass(frozen=True, slots=True)
class GateFigures:
    """What went through a gate since it was made; the period's figures are of the last whole one."""

    requests: int = 0
    """Requests the app answered or was cut off in; not those refused before they reached it."""
    errors: int = 0
    """Of those, answered with 5xx or broken off: faults, time limits, cuts."""
    shed: int = 0
    """RefusedError with 503 because the queue was full, or too many WebSockets were open."""
    timeouts: int = 0
    """Ended by the request time limit, waiting ones included."""
    faults: int = 0
    """Exceptions that left the app, responses it never gave or that may not be sent."""
    disconnects: int = 0
    """Clients that went away before their response was complete."""
    too_large: int = 0
    """RefusedError with 413."""
    in_flight: int = 0
    """Requests being served now."""
    queued: int = 0
    """Requests and WebSocket handshakes waiting now."""
    websockets: int = 0
    """WebSockets the app serves now."""
    running: int = 0
    """Requests and WebSockets the app has not returned from; some work on after their response."""
    requests_per_second: float = 0.0
    """In the last whole period; 0 when it had no request."""
    latency_p50: float = 0.0
    """Seconds, over the last period that had requests."""
    latency_p99: float = 0.0
    """Seconds, over the last period that had requests."""
    last_request_time: float | None = None
    """`time.monotonic()` of the latest begin or end of a request or WebSocket; None before the first."""


class Window:
    """Latencies of one reporting period."""

    __slots__ = ("_quantiles", "began", "ends", "histogram")

    def __init__(self, began: float) -> None:
        self.began = began
        self.ends = began + PERIOD
        self.histogram: dict[int, int] = {}
        self._quantiles: tuple[int, float, float] | None = None

    def read(self) -> tuple[int, float, float]:
        """Return count, p50 and p99 so far; computed anew only when the count has changed."""
        histogram = self.histogram.copy()
        count = sum(histogram.values())
        known = self._quantiles
        if known is None or known[0] != count:
            p50, p99 = quantiles(histogram, (0.5, 0.99))
            self._quantiles = known = (count, p50, p99)
        return known


class Latencies:
    """The current period and the last whole one that had requests."""

    __slots__ = ("_current", "_last")

    def __init__(self, now: float) -> None:
        self._current = Window(now)
        self._last: Window | None = None

    def add(self, now: float, seconds: float) -> None:
        """Count a request that ended now. Front loop only."""
        window = self._current
        if now >= window.ends:
            self._last = window
            self._current = window = Window(now)
        bucket = bucket_of(seconds)
        histogram = window.histogram
        histogram[bucket] = histogram.get(bucket, 0) + 1

    def read(self, now: float) -> tuple[float, float, float]:
        """Return requests per second, p50 and p99. Any thread."""
        current, last = self._current, self._last
        if now < current.ends and last is not None:
            window, over = last, now >= last.ends + 2 * PERIOD
        else:
            window, over = current, now >= current.ends + PERIOD
        count, p50, p99 = window.read()
        elapsed = min(max(now - window.began, 1.0), PERIOD)
        return (0.0 if over else count / elapsed), p50, p99
