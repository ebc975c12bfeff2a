"""What a benchmark hands back: rows with their figure, what it is compared with, and the figure to reach."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Side = Literal["value", "ratio"]


@dataclass(frozen=True, slots=True)
class Target:
    """A figure to reach, at most or at least `limit`, of a row's value or of its ratio to the base."""

    limit: float
    at_most: bool
    of: Side
    source: str
    """Whose figure it is: the section of the project's list of targets, or the peer it was taken from."""

    def met(self, figure: float) -> bool:
        return figure <= self.limit if self.at_most else figure >= self.limit

    def __str__(self) -> str:
        sign = "≤" if self.at_most else "≥"
        unit = "x" if self.of == "ratio" else ""
        return f"{sign} {number(self.limit)}{unit} ({self.source})"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; `low` and `high` span the rounds or the samples, `base` has the same unit."""

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    base: float | None = None
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def at_most(limit: float, source: str, of: Side = "value") -> Target:
    return Target(limit, True, of, source)


def at_least(limit: float, source: str, of: Side = "value") -> Target:
    return Target(limit, False, of, source)


def row(
    what: str,
    values: float | Sequence[float],
    unit: str,
    *,
    base: float | None = None,
    ratio: float | None = None,
    target: Target | None = None,
) -> Row:
    """Make a row of one figure or of several rounds'; the ratio is value / base if not given."""
    rounds = [float(values)] if isinstance(values, (int, float)) else [float(value) for value in values]
    median = statistics.median(rounds)
    several = len(rounds) > 1
    if ratio is None and base:
        ratio = median / base
    met = None
    if target is not None:
        figure = median if target.of == "value" else ratio
        met = figure is not None and target.met(figure)
    return Row(
        what, median, unit, min(rounds) if several else None, max(rounds) if several else None,
        base, ratio, str(target or ""), met,
    )  # fmt: skip


def quantile_row(
    what: str,
    samples: Sequence[float],
    q: float,
    unit: str,
    *,
    scale: float = 1.0,
    base: float | None = None,
    ratio: float | None = None,
    target: Target | None = None,
) -> Row:
    """Make a row of one quantile of samples; `low` and `high` are the least and the most of them all."""
    made = row(what, quantile(samples, q) * scale, unit, base=base, ratio=ratio, target=target)
    low, high = min(samples) * scale, max(samples) * scale
    return Row(what, made.value, unit, low, high, base, made.ratio, made.target, made.met)


def quantile(values: Sequence[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(len(values) * q))]


def number(value: float) -> str:
    """Return three significant digits, thousands apart."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}".removesuffix(".0") if abs(value) >= 10 else f"{value:.3g}"


TITLES = ("what", "measured (median, min to max)", "peer/base", "ratio", "target (of)", "met")


def table(rows: Sequence[Row]) -> str:
    """Return rows as aligned text."""
    lines = [TITLES, *(_cells(one) for one in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(TITLES))]
    shown = [
        " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    ]
    shown.insert(1, "-+-".join("-" * width for width in widths))
    return "\n".join(shown)


def _cells(one: Row) -> tuple[str, ...]:
    span = ""
    if one.low is not None and one.high is not None:
        span = f" ({number(one.low)} to {number(one.high)})"
    met = {None: "", True: "yes", False: "NO"}[one.met]
    base = f"{number(one.base)} {one.unit}" if one.base is not None else ""
    ratio = f"{number(one.ratio)}x" if one.ratio is not None else ""
    return one.what, f"{number(one.value)} {one.unit}{span}", base, ratio, one.target, met
