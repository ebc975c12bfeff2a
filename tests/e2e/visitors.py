"""Clients that go on by themselves, each in a thread of its own, from entering their context to its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Self

from tests.e2e.stack import DEADLINE


class Visitors:
    """Whoever visits calls `_ended.wait` between two visits, and ends once it returns True."""

    def __init__(self, *runs: Callable[[], None]) -> None:
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=run, daemon=True) for run in runs]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(DEADLINE)
